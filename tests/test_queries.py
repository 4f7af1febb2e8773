from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2seg.demo import IMAGES
from text2seg.errors import QueryError
from text2seg.model_card import card_of
from text2seg.ontology.categories import check_entry
from text2seg.queries import Query, names_in, parse_queries, parse_query
from text2seg.templates import TEMPLATES
from text2seg.vocabulary import ClosedVocabulary


def test_there_are_85_templates_with_one_placeholder_each():
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 85
    assert all(template.count("{}") == 1 for template in TEMPLATES)


def test_plus_joins_parts_and_spaces_are_ignored():
    assert parse_query("  person +  bench").parts == (("person",), ("bench",))
    assert parse_query("person+bench") == parse_query(" person + bench ")


@pytest.mark.parametrize("empty", ["", "  ", "dog+", "+", "a++b"])
def test_an_empty_query_or_part_is_refused(empty):
    with pytest.raises(QueryError, match="empty"):
        parse_query(empty)


def test_no_queries_are_refused():
    with pytest.raises(QueryError, match="at least one"):
        parse_queries([])


def test_a_repeated_query_is_kept_once():
    assert [query.name for query in parse_queries(["dog", "cat", " dog"])] == ["dog", "cat"]


@pytest.mark.parametrize(
    "known", ["dog", "DOG", "a big red car", "two dogs and a cat", "tv", "A photo of a dog.", "a jack-o-lantern, lit"]
)
def test_demo_vocabulary_accepts_its_wordings_and_phrases_with_them(known):
    card_of("demo").closed_vocabulary.check(known)


def test_demo_vocabulary_refuses_an_unknown_word_and_names_its_vocabulary():
    with pytest.raises(QueryError, match=r"does not know 'zebr'.*checkpoints show demo.*--model base"):
        card_of("demo").closed_vocabulary.check("zebr")


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("dogs", "dog"),
        ("two Dogs", "two dog"),
        ("buses", "bus"),
        ("strawberries", "strawberry"),
        ("maple leaves", "maple leaf"),
        ("mice", "mouse"),
        ("fire trucks at a house", "fire truck at a house"),
        ("octopus", "octopus"),
        ("Jeans", "Jeans"),
    ],
)
def test_a_query_in_the_plural_looks_for_the_singular(plural, singular):
    vocabulary = card_of("demo").closed_vocabulary
    (query,), unknown = vocabulary.split([parse_query(plural)])
    assert (query.name, query.parts, unknown) == (plural, ((singular,),), {})


def test_a_text_in_the_plural_is_unknown_because_clip_reads_it_as_it_is():
    vocabulary = card_of("demo").closed_vocabulary
    for text in ("dogs", "two dogs"):
        with pytest.raises(QueryError, match="Did you mean dog"):
            vocabulary.check(text)
    assert not vocabulary.unknown(["two dogs and a cat"])


def test_plurals_give_the_masks_of_the_singular(demo):
    (file,) = IMAGES.glob("scene_0019.jpg")
    found = demo.segment(file, ["sheep", "sheeps", "dogs"])
    one, other = ([each.mask for each in found.segments if each.query == name] for name in ("sheep", "sheeps"))
    assert len(one) == 2
    np.testing.assert_array_equal(one, other)
    assert not [each for each in found.segments if each.query == "dogs"]


@pytest.mark.parametrize("text", ["sheep -sheep", "dog|Puppy -puppy", "cat+dog -DOG"])
def test_a_query_that_excludes_what_it_looks_for_is_refused(text):
    with pytest.raises(QueryError, match="which it looks for; leave one of them out"):
        parse_query(text)


def test_an_unknown_word_leaves_the_other_queries_known():
    vocabulary = ClosedVocabulary({"dog": ["dog", "puppy"], "cat": ["cat"]}, model="demo")
    known, unknown = vocabulary.split(parse_queries("dog, caat, cat -lion, dog+cat, puppy|bat, lion|bat, dog+lion"))
    assert [(query.name, query.parts, query.negatives) for query in known] == [
        ("dog", (("dog",),), ()),
        ("cat", (("cat",),), ()),
        ("dog+cat", (("dog",), ("cat",)), ()),
        ("puppy|bat", (("puppy",),), ()),
    ]
    assert unknown == {
        "caat": "the demo model does not know 'caat'. Did you mean cat?",
        "lion|bat": "the demo model does not know 'lion' and 'bat'.",
        "dog+lion": "the demo model does not know 'lion'.",
    }


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("unicorn near a sheep", "the demo model knows only 'sheep' of 'unicorn near a sheep'."),
        ("red car+sheep", "the demo model knows only 'car' of 'red car'."),
        ("car|sports car", "the demo model knows only 'car' of 'sports car'."),
        ("car -fire engines at night", "the demo model knows only 'fire engines' of 'fire engines at night'."),
        ("green sheep, old car", "the demo model knows only 'sheep' and 'car' of 'green sheep, old car'."),
        ("sheep", ""),
        ("a photo of my cars.", ""),
        ("sheep & car", ""),
        (
            "The fire engine and sheep",
            "the demo model knows only 'fire engine' and 'sheep' of 'The fire engine and sheep'.",
        ),
        ("unicorn", ""),  # an error, or left out
        ("car|unicorn", "the demo model leaves 'unicorn' out of 'car|unicorn', as it does not know it."),
        (
            "car|sheeep",
            "the demo model leaves 'sheeep' out of 'car|sheeep', as it does not know it. Did you mean sheep?",
        ),
        ("car -lion", "the demo model leaves 'lion' out of 'car', as it does not know it."),
        (
            "red car|unicorn",
            "the demo model knows only 'car' of 'red car' and leaves 'unicorn' out of 'red car|unicorn', as it does "
            "not know it.",
        ),
    ],
)
def test_a_half_known_query_is_said_to_be_one(query, says):
    things = {name: [name] for name in ("sheep", "car", "fire engine")}
    assert ClosedVocabulary(things, model="demo").half_known(parse_query(query)) == says


def test_the_error_of_several_unknown_words_names_each_and_the_way_out_once():
    error = str(ClosedVocabulary({"dog": ["dog"]}, model="demo").error(["one is unknown.", "two is unknown."]))
    assert error.startswith("one is unknown. Two is unknown. text2seg checkpoints show demo")
    assert error.count("--model base") == 1


def test_the_error_shortens_a_very_long_query():
    with pytest.raises(QueryError) as caught:
        card_of("demo").closed_vocabulary.check("xyz" * 2000)
    assert len(str(caught.value)) < 300


def test_demo_vocabulary_suggests_the_closest_word():
    with pytest.raises(QueryError, match=r"Did you mean .*elephant"):
        card_of("demo").closed_vocabulary.check("elefant")


def test_demo_vocabulary_has_at_least_100_categories_with_their_wordings():
    things = card_of("demo").vocabulary
    assert len(things) >= 100
    wordings = [wording for words in things.values() for wording in words]
    assert len(wordings) == len(set(wordings))


TWO = ("sheep", "fire engine")


@pytest.mark.parametrize(
    "typed",
    [
        "sheep, fire engine",
        ",sheep,,fire engine, ",
        "sheep . fire engine .",
        "sheep. fire engine.",
        "sheep. fire engine",
        "sheep; fire engine",
        "sheep\nfire engine\n",
        "sheep\r\nfire engine",
        "sheep\u2028fire engine",
        "sheep\tfire engine",
        "sheep，fire engine",
        "sheep、fire engine。",
        "sheep；fire engine",
        "sheep، fire engine",
        "sheep؛ fire engine",
        '["sheep", "fire engine"]',
        "['sheep', 'fire engine']",
        "[sheep, fire engine]",
        "('sheep', 'fire engine')",
        '["sheep", "fire engine"',
        '"sheep", "fire engine"',
        "'sheep', 'fire engine'",
        '"sheep, fire engine"',
        "“sheep”, „fire engine“",
        "«sheep», 「fire engine」",
        "- sheep\n- fire engine",
        "-sheep\n-fire engine",
        "* sheep\n* fire engine",
        "• sheep • fire engine",
        "1. sheep\n2. fire engine",
        "4) sheep\n5) fire engine",
        "1. sheep 2. fire engine",
        "(1) sheep, (2) fire engine",
        "sheep, and fire engine",
        "sheep\u200b, \ufefffire\u00a0engine",
        "sheep, Sheep, fire engine",
        ["sheep, fire engine"],
        ["sheep", "fire engine."],
    ],
)
def test_several_names_are_split_in_every_notation(typed):
    assert tuple(query.name for query in parse_queries(typed)) == TWO


@pytest.mark.parametrize(
    "name",
    [
        "st. bernard",
        "St. Bernard",
        "U.S. flag",
        "Washington D.C.",
        "3.5 inch disk",
        "3,5 inch disk",
        "1,000 dollar bill",
        "Dr. Pepper",
        "No. 5 bottle",
        "salt and pepper",
        "and gate",
        "AC/DC poster",
        "dog's bowl",
        "rock 'n' roll",
        'monitor 24"',
        "four-leaf clover",
        "dog (small)",
        "a|b",
        "a+b",
        "羊",
        "می‌خواهم",
        "👨‍👩‍👧",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "café",
    ],
)
def test_a_single_name_is_not_split(name):
    assert names_in(name) == (name,)
    assert names_in([name, f"{name}, dog"]) == (name, name, "dog")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "nothing to look for"),
        (" , ;\n", "nothing to look for"),
        ("[]", "nothing to look for"),
        (["dog", " "], "must not be empty"),
        ("?!", "'\\?!' names nothing"),
        ("\u3164", "nothing to look for"),
        ("sheep / goat", "read in two ways: write a comma between two things, or |"),
        ("sheep - goat", "read in two ways: write a comma between two things, or -word"),
        ("-sheep", "begins with what is not wanted"),
        ("\x1b[31msheep", r"control characters, got '\\x1b"),
        ("\udc80", "control characters"),
        ("[1, 2]", "a query is a text, got 1"),
        ('[["sheep"]]', "a query is a text, got"),
        ('{"queries": "sheep"}', "no list of names"),
        ("x" * 10_000, "has 10,000 letters, at most 1,000"),
        (5, "one text or a list of texts, got 5"),
        (None, "one text or a list of texts"),
        (b"sheep", "one text or a list of texts"),
        ([1], "a query is a text, got 1"),
        ("(" * 100_000, "nothing to look for"),
        ("sheep," * 20_000, "more than 10,000 names"),
        ({"sheep": 1}, "one text or a list of texts"),
        ([Query("Dog", (("dog",),)), Query("dog", (("cat",),))], "two different queries are called 'dog'"),
    ],
)
def test_unreadable_queries_are_refused_with_a_message(typed, says):
    with pytest.raises(QueryError, match=says) as refusal:
        parse_queries(typed)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 250


@settings(max_examples=300, deadline=None)
@given(st.text("ab1 .,;-+|/[](){}\"'“”「」•*\n\t\u200b\u200dé", max_size=14))
def test_parsing_a_parsed_name_does_not_change_it(typed):
    try:
        names = names_in(typed)
    except QueryError:
        return
    for name in names:
        assert names_in(name) == (name,)


def test_a_long_list_of_names_is_not_one_long_name():
    assert len(parse_queries("\n".join(f"thing {number}" for number in range(2000)))) == 2000


@pytest.mark.parametrize("typed", ["sheep, goat", "sheep; goat", "sheep. goat."])
def test_a_wording_in_an_ontology_must_be_one_name(typed):
    for key in ("queries", "negative_queries"):
        entry, ((way, says),) = check_entry({"name": "animal", key: [typed]})
        assert (entry, way) == (None, (key, 0))
        assert "reads as 2 names (sheep; goat); list them one by one" in says
    entry, faults = check_entry({"name": "animal", "queries": ["St. Bernard", "sheep\u200b,"]})
    assert (entry.queries, faults) == (["St. Bernard", "sheep"], [])
