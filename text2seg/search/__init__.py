"""Images by words: what CLIP saw in each image of a folder, kept in a vector index on disk."""

SEARCH_FILE = "search.json"
"""File of the results of a search, in its output folder."""
