"""Images by words: what CLIP saw in each image of a folder, kept in a vector index on disk."""

from pathlib import Path

from text2seg.io.output_folder import OutputFolder

SEARCH_FILE = "search.json"
"""File of the results of a search, in its output folder."""


def results_folder(output: Path, *, overwrite: bool = False) -> OutputFolder:
    """Return the folder of the results of searches."""
    return OutputFolder(output, command="search", overwrite=overwrite)
