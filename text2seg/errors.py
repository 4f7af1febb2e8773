"""The errors that text2seg raises on bad input. Each message names the thing at fault and a way out."""

from __future__ import annotations


class Text2SegError(Exception):
    """Anything that a user of text2seg can do something about."""


class ImageError(Text2SegError):
    """A picture that cannot be read."""


class QueryError(Text2SegError):
    """A query, template or set of queries that cannot be used."""


class CheckpointError(Text2SegError):
    """Weights that are missing, damaged, of the wrong kind or not to be trusted."""


class SettingsError(Text2SegError):
    """Settings that contradict each other or the machine."""


class OutputError(Text2SegError):
    """A result that cannot be written."""
