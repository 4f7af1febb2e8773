"""Former name of `text2seg.queries` (until 0.5). Programs may import from it until 0.7."""

from text2seg.queries import Query, parse_queries, parse_query

__all__ = ["Query", "parse_queries", "parse_query"]
