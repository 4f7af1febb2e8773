"""Ontology files: reading, errors, and writing thresholds."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2seg.errors import OntologyError, QueryError
from text2seg.ontology import (
    Category,
    Ontology,
    ontology_of_queries,
    queries_of,
    read_ontology,
    with_ids_from,
    write_thresholds,
)
from text2seg.queries import Query

DOCS = (Path(__file__).parents[1] / "docs" / "ontology.md").read_text(encoding="utf-8")
FULL, SHORT = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)


def written(folder: Path, text: str, name: str = "things.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def faults(folder: Path, text: str, name: str = "things.yaml") -> list[str]:
    """Return the error message of a text, without the folder."""
    path = written(folder, text, name)
    with pytest.raises(OntologyError) as caught:
        read_ontology(path)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_example_of_the_docs_is_read(tmp_path):
    dog, cat, seat = read_ontology(written(tmp_path, FULL)).categories
    assert dog == Category("dog", 18, "animal", ("dog", "hound"), ("cat",), 0.75, 0.3, 100, "#ff8800")
    assert cat == Category("cat", 1, "thing", ("cat",), (), None, None, 0, None)
    assert (seat.id, seat.queries) == (2, ("person+bench",))


def test_short_form_of_the_docs_is_read(tmp_path):
    dog, cat, horse = read_ontology(written(tmp_path, SHORT)).categories
    assert (dog.id, dog.queries, dog.threshold) == (1, ("dog", "hound"), None)
    assert (cat.id, cat.queries, cat.threshold) == (2, ("cat", "kitty"), 0.7)
    assert (horse.id, horse.queries) == (3, ("horse",))


def test_errors_in_the_docs_are_reported_as_shown(tmp_path):
    wrong = "categories:\n- name: dog\n\n  queries: [dog, puppy]\n  treshold: 0.5\n  threshold: 1.5\n\n"
    told = faults(tmp_path, wrong + "- cat\n- name: x\n\n\n  queries: [puppy]\n")
    shown = re.findall(r"```\n(things.*?)```", DOCS, re.DOTALL)[0].splitlines()
    for line, example in zip(told, shown, strict=True):
        assert line.startswith(example.rstrip("…"))


def test_names_only_and_json_are_read(tmp_path):
    assert read_ontology(written(tmp_path, "categories: [dog, red car]")).names == ("dog", "red car")
    dumped = '\ufeff{\r\n\t"categories": [\r\n\t\t{"name": "\\ud83d\\ude00 dog", "id":7}, "cat"]}'
    for name in ("things.json", "THINGS.JSON"):
        ontology = read_ontology(written(tmp_path, dumped, name))
        assert [(each.name, each.id) for each in ontology.categories] == [("😀 dog", 7), ("cat", 1)]


def test_missing_ids_get_the_lowest_free_numbers(tmp_path):
    text = "categories: [{name: a, id: 2}, b, {name: c, id: 1}, d, {name: e, id: 5}, f, g]"
    assert [each.id for each in read_ontology(written(tmp_path, text)).categories] == [2, 3, 1, 4, 5, 6, 7]


ITEM = "categories:\n- name: dog\n  {}\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "is empty; it should list categories"),
        ("# nothing yet\n", 1, "is empty"),
        ("- dog\n", 1, "must begin with the key categories"),
        ("dog", 1, "must begin with the key categories"),
        ("\ncategory: [dog]\n", 2, "category: is not a key of an ontology (did you mean 'categories'?)"),
        ("\ncategories: []\n", 2, "categories: must list at least one category"),
        ("\ncategories:\n", 2, "categories: must list at least one category"),
        ("\ncategories: dog\n", 2, "categories: must list at least one category"),
        ("categories:\n- 12\n", 2, "categories[0]: must be a text that is not empty"),
        ("categories:\n- ''\n", 2, "categories[0]: must be a text that is not empty"),
        ("categories:\n- queries: [dog]\n", 2, "categories[0].name: is missing"),
        ("categories:\n- dog\n- [cat]\n", 3, "categories[1]: must be a text"),
        ("categories:\n- dog\n-\n- cat\n", 3, "categories[1]: must be a text that is not empty"),
        ("categories:\n- dog\n- Dog\n", 3, "categories[1]: 'Dog' is there already, in line 2"),
        ("categories:\n- name: no\n- name: true\n", 3, "categories[1].name: must be a text"),
        ("categories:\n  dog:\n  cat: 5\n", 3, "categories.cat.queries: must be a list"),
        ("categories:\n  dog:\n  cat:\n  dog: [hound]\n", 4, "categories.dog: is there twice, first in line 2"),
        ("categories:\n  dog: {name: cat}\n", 2, "categories.dog.name: is given twice"),
        ("categories:\n- a+b\n- name: c\n  queries: [b + A]\n", 4, "'b + A' is a wording of 'a+b' too, in line 2"),
        ("categories:\n- x|y\n", 2, "'x|y' has '|' in it"),
        (ITEM.format("id: 0"), 3, "categories[0].id: must be a whole number of 1 or more, got 0"),
        (ITEM.format("id: 1.0"), 3, "categories[0].id: must be a whole number of 1 or more, got 1.0"),
        (ITEM.format("id: true"), 3, "categories[0].id: must be a whole number of 1 or more, got true"),
        (ITEM.format("id: 5\n- name: cat\n  id: 5"), 5, "categories[1].id: 5 is there already, in line 3"),
        (ITEM.format("id: 5\n  id: 6"), 4, "categories[0].id: is there twice, first in line 3"),
        (ITEM.format("queries: dog"), 3, "categories[0].queries: must be a list of at least one wording"),
        (ITEM.format("queries: []"), 3, "categories[0].queries: must be a list of at least one wording"),
        (ITEM.format("queries:"), 3, "categories[0].queries: must be a list of at least one wording"),
        (ITEM.format("queries:\n  - dog\n  - ' '"), 5, "categories[0].queries[1]: must be a list of at least one"),
        (ITEM.format("queries: [dog, DOG]"), 3, "categories[0].queries[1]: 'DOG' is there already, in line 3"),
        (ITEM.format("queries: [a++b]"), 3, "categories[0].queries[0]: 'a++b' has an empty part"),
        (ITEM.format("queries: [a+b, c]"), 3, "mixes 'a+b'"),
        (ITEM.format("queries: [dog -cat]"), 3, "negative_queries"),
        (ITEM.format("negative_queries: [a+b]"), 3, "joins wordings with +"),
        (ITEM.format("negative_queries: [dog]"), 3, "'dog' is wanted by the same category"),
        (ITEM.format("threshold: 0"), 3, "must be a number above 0, at most 1, such as 0.8, got 0"),
        (ITEM.format("threshold: .nan"), 3, "must be a number above 0"),
        (ITEM.format("threshold: 80%"), 3, "must be a number above 0, at most 1, such as 0.8, got '80%'"),
        (ITEM.format("presence: 1.01"), 3, "categories[0].presence: must be a number from 0 to 1"),
        (ITEM.format("presence: -0.1"), 3, "categories[0].presence: must be a number from 0 to 1"),
        (ITEM.format("min_area: -1"), 3, "categories[0].min_area: must be a whole number of pixels, 0 or more"),
        (ITEM.format("colour: red"), 3, "must be #rrggbb or #rgb in quotes"),
        (ITEM.format("colour: #ff8800"), 3, 'in quotes, such as "#ff8800", got nothing'),
        (ITEM.format("color: '#ff8800'"), 3, "is not a key of a category (did you mean 'colour'?)"),
        (ITEM.format("? [a]\n  : b"), 3, "a key must be a text"),
        ("categories:\n- dog\n- {name: 'cat\n", 4, "is neither YAML nor JSON"),
        ("categories: [a]\n---\ncategories: [b]\n", 2, "is neither YAML nor JSON"),
        ("categories:\n- !!python/object/apply:os.system [exit]\n", 2, "tags such as"),
        ("categories:\n- !!python/name:os.system x\n", 2, "tags such as tag:yaml.org,2002:python/name:os.system"),
        ("categories:\n- name: x\n  id: !!int 'seven'\n", 3, "categories[0].id: cannot be read as int"),
        ("categories:\n- &a dog\n- *a\n", 2, "categories[1]: aliases (*name) are not read"),
        ('categories: ["\\ud83d dog"]', 1, "half a character"),
    ],
)
def test_error_names_line_key_and_remedy(tmp_path, text, line, says):
    first, *_ = faults(tmp_path, text)
    assert first.startswith(f"things.yaml:{line}: ")
    assert says in first


def test_shared_wording_error_names_both_lines(tmp_path):
    (fault,) = faults(
        tmp_path, "categories:\n- name: dog\n  queries: [dog, puppy]\n\n- name: pet\n  queries:\n  - Puppy\n"
    )
    assert fault.startswith("things.yaml:7: categories[1].queries[0]: 'Puppy' is a wording of 'dog' too, in line 3")


def test_all_errors_are_reported_in_file_order(tmp_path):
    dog, again = "- name: dog\n  id: 0\n  treshold: 1\n", "- name: DOG\n  id: 1\n  presence: 2\n"
    text = f"categories:\n{dog}{again}- name: cat\n  id: 1\nx: y\n"
    assert [int(fault.split(":")[1]) for fault in faults(tmp_path, text)] == [3, 4, 5, 7, 9, 10]


def test_number_of_reported_errors_is_limited(tmp_path):
    told = faults(tmp_path, "categories:\n" + "- name: dog\n" * 100)
    assert len(told) == 21
    assert told[-1] == "things.yaml: and 79 more"


def test_json_error_names_the_line(tmp_path):
    assert faults(tmp_path, '{"categories":\n ["dog",]}', "a.json")[0].startswith("a.json:2: is not JSON")
    assert faults(tmp_path, "categories: [dog]", "a.json")[0].startswith("a.json:1: is not JSON")
    assert faults(tmp_path, '{"categories":\n [{"name": "x", "id": 0}]}', "a.json")[0].startswith(
        "a.json:2: categories[0].id"
    )


def test_unreadable_files_are_reported(tmp_path):
    with pytest.raises(OntologyError, match=r"nowhere\.yaml: there is no such file"):
        read_ontology(tmp_path / "nowhere.yaml")
    with pytest.raises(OntologyError, match="cannot be read"):
        read_ontology(tmp_path)
    with pytest.raises(OntologyError, match="cannot be read"):
        read_ontology("a\0b")
    (tmp_path / "latin.yaml").write_bytes("categories:\n- käfer".encode("latin-1"))
    with pytest.raises(OntologyError, match=r"latin\.yaml:2: is not UTF-8"):
        read_ontology(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"categories: [" + b"dog, " * 300_000)
    with pytest.raises(OntologyError, match="over the limit"):
        read_ontology(tmp_path / "large.yaml")


def test_hostile_files_are_refused_quickly(tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    before = time.monotonic()
    faults(tmp_path, bomb + "categories: *i\n")
    faults(tmp_path, "categories: &c [*c]\n")
    assert "too deeply" in faults(tmp_path, "categories: " + "[" * 2_000)[0]
    assert "too deeply" in faults(tmp_path, "[" * 2_000 + "]" * 2_000, "deep.json")[0]
    assert time.monotonic() - before < 20


@given(st.text(max_size=40), st.sampled_from(["{}", "categories: {}", "categories:\n- {}", "categories: [{{{}}}]"]))
def test_random_files_raise_only_ontology_error(tmp_path_factory, text, frame):
    path = written(tmp_path_factory.getbasetemp(), frame.format(text.encode("utf-8", "replace").decode()))
    with suppress(OntologyError):
        assert read_ontology(path).categories


def test_to_dict_round_trip(tmp_path):
    ontology = read_ontology(written(tmp_path, FULL))
    again = written(tmp_path, json.dumps(ontology.to_dict()), "again.json")
    assert read_ontology(again) == ontology


def test_coco_categories(tmp_path):
    first, second, _ = read_ontology(written(tmp_path, FULL)).coco_categories()
    assert first == {"id": 18, "name": "dog", "supercategory": "animal", "color": [255, 136, 0]}
    assert second == {"id": 1, "name": "cat", "supercategory": "thing"}


def test_queries_of_an_ontology(tmp_path):
    dog, _, seat = queries_of(read_ontology(written(tmp_path, FULL)))
    assert dog == Query("dog", (("dog", "hound"),), ("cat",), 0.75, 0.3, 100)
    assert seat == Query("seat", (("person",), ("bench",)))


def test_queries_of_mixed_wordings_are_refused():
    (category,) = ontology_of_queries("dog").categories
    with pytest.raises(OntologyError, match=r"dog: 'a\+b'"):
        queries_of(Ontology((replace(category, queries=("a+b", "c")),)))


def test_typed_queries_round_trip_through_an_ontology():
    ontology = ontology_of_queries("dog, red  car|taxi -bus, person+bench|seat, dog")
    assert ontology.names == ("dog", "red car|taxi", "person+bench|seat")
    assert [category.id for category in ontology.categories] == [1, 2, 3]
    assert [query.parts for query in queries_of(ontology)] == [
        (("dog",),),
        (("red car", "taxi"),),
        (("person",), ("bench", "seat")),
    ]
    assert ontology.categories[1].negative_queries == ("bus",)
    with pytest.raises(QueryError):
        ontology_of_queries([])
    assert ontology_of_queries("dog, Dog").names == ("dog",)


def test_ids_from_a_coco_file():
    ontology = ontology_of_queries("dog, cat")
    theirs = [{"id": 17, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
    first, second = with_ids_from(ontology, theirs).categories
    assert (first.id, first.supercategory) == (18, "thing")
    assert (second.id, second.supercategory) == (17, "animal")
    with pytest.raises(OntologyError, match=r"no category 'Dog' \(did you mean 'dog'\?\)"):
        with_ids_from(ontology_of_queries("Dog"), theirs)
    with pytest.raises(OntologyError, match="'cat' twice"):
        with_ids_from(ontology, [*theirs, {"id": 1, "name": "cat"}])
    with pytest.raises(OntologyError, match="share the id 5"):
        with_ids_from(ontology, [{"id": 5, "name": "cat"}, {"id": 5, "name": "dog"}])
    with pytest.raises(OntologyError, match="whole number as its id, got None"):
        with_ids_from(ontology, [{"name": "cat"}, {"id": 5, "name": "dog"}])


def changed(before: str, after: str) -> list[tuple[str, str]]:
    """Return removed and added lines."""
    old, new = before.splitlines(), after.splitlines()
    return [("-", line) for line in old if line not in new] + [("+", line) for line in new if line not in old]


def test_write_thresholds_changes_nothing_else(tmp_path):
    path = written(tmp_path, FULL)
    write_thresholds(path, {"dog": 0.65, "seat": 0.9})
    after = path.read_text(encoding="utf-8")
    line = next(line for line in FULL.splitlines() if "threshold: 0.75" in line)
    expected = [("-", line), ("+", line.replace("0.75", "0.65")), ("+", "    threshold: 0.9")]
    assert changed(FULL, after) == expected
    assert [each.threshold for each in read_ontology(path).categories] == [0.65, None, 0.9]
    assert [each.name for each in tmp_path.iterdir()] == ["things.yaml"]


LAYOUTS = [
    ("categories: [dog, cat]\n", "categories: [{name: dog, threshold: 0.5}, cat]\n"),
    ("categories:\n- dog # the best\n- cat\n", "categories:\n- {name: dog, threshold: 0.5} # the best\n- cat\n"),
    (
        "categories:\n- name: dog # the best\n\n- cat\n",
        "categories:\n- name: dog # the best\n  threshold: 0.5\n\n- cat\n",
    ),
    ("categories:\n- id: 3\n  name: dog", "categories:\n- id: 3\n  name: dog\n  threshold: 0.5"),
    ("categories:\r\n- name: dog\r\n- cat\r\n", "categories:\r\n- name: dog\r\n  threshold: 0.5\r\n- cat\r\n"),
    ("categories:\n- name: dog\n  threshold:\n  id: 1\n", "categories:\n- name: dog\n  threshold: 0.5\n  id: 1\n"),
    ("categories:\n- name: dog\n  threshold: null # open\n", "categories:\n- name: dog\n  threshold: 0.5 # open\n"),
    ("categories: [{name: dog}]", "categories: [{name: dog, threshold: 0.5}]"),
    ("categories: [{name: dog, id: 3}]", "categories: [{name: dog, id: 3, threshold: 0.5}]"),
    ("categories: {dog: [a, b], cat: }", "categories: {dog: {queries: [a, b], threshold: 0.5}, cat: }"),
    ("categories: {dog, cat}", None),
    ("categories: {dog: {}, cat: {}}", "categories: {dog: {threshold: 0.5}, cat: {}}"),
    ("categories:\n  dog:\n  cat:\n", "categories:\n  dog: {threshold: 0.5}\n  cat:\n"),
    ("categories:\n  cat:\n  dog:\n", "categories:\n  cat:\n  dog: {threshold: 0.5}\n"),
    ("categories:\n  dog: # best\n  cat:\n", None),
    (
        "categories:\n  dog:\n  - a\n  - b\n  cat:\n",
        'categories:\n  dog: {queries: ["a", "b"], threshold: 0.5}\n  cat:\n',
    ),
    ("categories:\n  dog:\n    id: 4\n", "categories:\n  dog:\n    threshold: 0.5\n    id: 4\n"),
    ('categories:\n- "dog"\n', 'categories:\n- {name: "dog", threshold: 0.5}\n'),
    ('{"categories": ["dog", "cat"]}', '{"categories": [{"name": "dog", "threshold": 0.5}, "cat"]}'),
    (
        '{\n\t"categories": [\n\t\t{\n\t\t\t"name": "dog",\n\t\t\t"id": 2\n\t\t}\n\t]\n}\n',
        '{\n\t"categories": [\n\t\t{\n\t\t\t"name": "dog",\n\t\t\t"id": 2,\n\t\t\t"threshold": 0.5\n\t\t}\n\t]\n}\n',
    ),
    (
        '{"categories": [\n {\n  "name": "dog"\n }\n]}',
        '{"categories": [\n {\n  "name": "dog",\n  "threshold": 0.5\n }\n]}',
    ),
    ("\ufeffcategories: [dog]", "\ufeffcategories: [{name: dog, threshold: 0.5}]"),
    ("categories:\n- name: >\n    dog\n  id: 3\n", "categories:\n- threshold: 0.5\n  name: >\n    dog\n  id: 3\n"),
]


@pytest.mark.parametrize(("before", "after"), LAYOUTS)
def test_write_thresholds_in_every_layout(tmp_path, before, after):
    path = written(tmp_path, before, "a.json" if before.startswith("{") else "a.yaml")
    if after is None:
        with pytest.raises(OntologyError, match=r"dog: 0\.5"):
            write_thresholds(path, {"dog": 0.5})
        assert path.read_bytes() == before.encode()
        return
    wanted = [replace(each, threshold=0.5 if each.name == "dog" else None) for each in read_ontology(path).categories]
    write_thresholds(path, {"dog": 0.5})
    assert path.read_bytes().decode() == after
    assert list(read_ontology(path).categories) == wanted


def test_failed_write_thresholds_keeps_the_file(tmp_path):
    path = written(tmp_path, FULL)
    with pytest.raises(OntologyError, match=r"no category 'dogs' \(did you mean 'dog'\?\)"):
        write_thresholds(path, {"dog": 0.5, "dogs": 0.5})
    with pytest.raises(OntologyError, match="dog: the threshold must be above 0"):
        write_thresholds(path, {"dog": 1.5})
    assert path.read_text(encoding="utf-8") == FULL


def test_write_thresholds_keeps_a_symbolic_link(tmp_path):
    path = written(tmp_path, "categories: [dog]", "real.yaml")
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    write_thresholds(link, {"dog": 0.5})
    assert link.is_symlink()
    assert read_ontology(path).categories[0].threshold == 0.5
