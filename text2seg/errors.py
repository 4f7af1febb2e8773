"""The errors that text2seg raises on bad input. Each message names the thing at fault and a way out."""

from __future__ import annotations


class Text2SegError(Exception):
    """Anything that a user of text2seg can do something about.

    The message speaks to whoever typed a command or a line of Python. `on_page` is what a visitor of the app is told
    in its place, where the way out is another one there.
    """

    def __init__(self, message: str = "", *, on_page: str = "") -> None:
        super().__init__(message)
        self.on_page = on_page or message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"on_page": self.on_page}


class ImageError(Text2SegError):
    """An image that cannot be read."""


class QueryError(Text2SegError):
    """A query, template or set of queries that cannot be used."""


class OntologyError(Text2SegError):
    """A file of categories that cannot be used; one line for each fault, with the file's line."""


class DatasetError(Text2SegError):
    """A COCO file that is missing, damaged or does not fit the one it is compared with."""


class CheckpointError(Text2SegError):
    """Weights that are missing, damaged, of the wrong kind or not to be trusted."""


class SettingsError(Text2SegError):
    """Settings that contradict each other or the machine."""


class EngineError(Text2SegError):
    """Machines or workers that cannot be reached, do not fit the job or fail."""


class OutputError(Text2SegError):
    """A result that cannot be written."""
