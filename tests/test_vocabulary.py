from __future__ import annotations

import pytest

from text2seg.errors import QueryError
from text2seg.vocabulary import TEMPLATES, Things, parse_queries, parse_query


def test_there_are_the_85_templates_each_with_one_place_for_the_query():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 85
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_plus_joins_parts_and_spaces_do_not_matter():
    assert parse_query("  person +  bench").parts == (("person",), ("bench",))
    assert parse_query("person+bench") == parse_query(" person + bench ")


@pytest.mark.parametrize("empty", ["", "  ", "dog+", "+", "a++b"])
def test_an_empty_query_or_part_is_refused(empty):
    with pytest.raises(QueryError, match="empty"):
        parse_query(empty)


def test_no_queries_are_refused():
    with pytest.raises(QueryError, match="at least one"):
        parse_queries([])


def test_the_same_query_twice_is_one():
    assert [query.name for query in parse_queries(["dog", "cat", " dog"])] == ["dog", "cat"]


@pytest.mark.parametrize(
    "known", ["dog", "DOG", "a big red car", "dogs", "tv", "A photo of a dog.", "a jack-o-lantern, lit"]
)
def test_demo_knows_its_wordings_and_phrases_with_them(known):
    Things.of_demo().check(known)


def test_demo_names_what_it_knows_when_asked_for_something_else():
    with pytest.raises(QueryError, match=r"does not know 'zebr'.*dog, cat.*--model base"):
        Things.of_demo().check("zebr")


def test_a_very_long_query_is_not_repeated_in_full():
    with pytest.raises(QueryError) as caught:
        Things.of_demo().check("xyz" * 2000)
    assert len(str(caught.value)) < 2500


def test_demo_suggests_the_closest():
    with pytest.raises(QueryError, match=r"Did you mean .*elephant"):
        Things.of_demo().check("elefant")


def test_demo_knows_at_least_a_hundred_things_each_under_its_own_wording():
    import json
    from importlib import resources

    things = json.loads(resources.files("text2seg.demo").joinpath("things.json").read_text(encoding="utf-8"))
    assert len(things) >= 100
    wordings = [wording for words in things.values() for wording in words]
    assert len(wordings) == len(set(wordings))
