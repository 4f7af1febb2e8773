"""Errors that text2seg raises on bad input. Each message says what is wrong and what to do."""

from __future__ import annotations


class Text2SegError(Exception):
    """Base class of errors that the user can fix.

    Args:
        message: what is wrong and what to do, for users of the command line and of Python.
        on_page: the message for users of the app, if they have to do something else.
        in_api: the message for users of the app's HTTP API, if they have to do something else than at the command line.
    """

    def __init__(self, message: str = "", *, on_page: str = "", in_api: str = "") -> None:
        super().__init__(message)
        self.on_page = on_page or message
        self.in_api = in_api or message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, {"on_page": self.on_page, "in_api": self.in_api}


class ImageError(Text2SegError):
    """An image that cannot be read."""


class QueryError(Text2SegError):
    """A query, template or set of queries that cannot be used."""


class OntologyError(Text2SegError):
    """An ontology file that cannot be used. The message has a line for each fault, with its line in the file."""


class DatasetError(Text2SegError):
    """A COCO file that is missing, damaged or does not match the one it is compared with."""


class CheckpointError(Text2SegError):
    """Weights that are missing, damaged, of the wrong kind or unsafe to read."""


class SettingsError(Text2SegError):
    """Settings that are invalid, contradict each other or are not supported on this machine."""


class UnknownNameError(CheckpointError, SettingsError):
    """A name of weights that nobody knows; for the command line, a wrong value."""


class MissingTextError(QueryError, SettingsError):
    """No text is given where one is needed; for the command line, a wrong use."""


class EngineError(Text2SegError):
    """Machines or workers that cannot be reached, are not suited to the job or fail."""


class OutputError(Text2SegError):
    """An output that cannot be written."""


class PartialOutputError(OutputError):
    """An output that cannot be written after a part of the results was; the message says where that part is."""


class StoppedError(Text2SegError):
    """Work that the caller has stopped."""
