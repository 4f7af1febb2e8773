"""Shards of a labelling job that a dataset's `info` records, and those that are missing among merged ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

KEY = "shards"


def shards_entry(shard: str) -> dict[str, list[str]]:
    """Return what the `info` of a job's dataset records of its shard, such as "1/4": nothing if it did all images."""
    return {KEY: [shard]} if shard else {}


def shards_in(infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the shards that datasets record in their `info`, each once and in order. Anything else there is ignored.

    >>> shards_in([{"shards": ["2/3"]}, {}, {"shards": ["1/3", "2/3"]}])
    ['1/3', '2/3']
    """
    recorded = (info.get(KEY) for info in infos)
    found = {pair for each in recorded if isinstance(each, list) for pair in _pairs(each)}
    return [f"{part}/{count}" for count, part in sorted((count, part) for part, count in found)]


def missing_shards(shards: Iterable[str]) -> list[str]:
    """Return the shards that are needed beside these for all images.

    >>> missing_shards(["1/3", "3/3"]), missing_shards(["1/2", "2/2"])
    (['2/3'], [])
    """
    given: dict[int, set[int]] = defaultdict(set)
    for part, count in _pairs(shards):
        given[count].add(part)
    return [f"{part}/{count}" for count, parts in given.items() for part in range(1, count + 1) if part not in parts]


def _pairs(shards: Iterable[Any]) -> Iterator[tuple[int, int]]:
    for shard in shards:
        # six digits, because a file may record any number and the missing ones are counted
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard) if isinstance(shard, str) else None
        if match and 1 <= int(match[1]) <= int(match[2]):
            yield int(match[1]), int(match[2])
