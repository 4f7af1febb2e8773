"""Rendered images of results: overlays, cut-outs, heat maps and texts, for images of any size and any name."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from pathlib import Path

import builders
import matplotlib.text
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text2seg.records import Candidates, Segment, Segmentation, SimilarityMaps
from text2seg.render import charts, colour_of, cut_out, drawing, maps_with_points, overlay
from text2seg.render.drawing import NEGATIVE, POSITIVE, colours_of, fitted, heat, printable, text_width
from text2seg.render.panels import LARGEST, MOST_ABSENT, _candidate

NAMES = ["cat", "красный мяч", "猫 🐈", "e\u0301te\u0301", "two\nlines\x00", "\udcff", "", " ", "x" * 500, "نص"]


def has(image: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((image == colour).all(-1).any())


def scene(hw: tuple[int, int], query: str = "ball") -> Segmentation:
    mask = np.zeros(hw, np.bool_)
    mask[hw[0] // 4 : hw[0] // 2 + 1, hw[1] // 2 :] = True
    return builders.segmentation(builders.segment(query, mask), queries=(query, "unicorn"), hw=hw)


# --- colours -------------------------------------------------------------------------------------------------------


def test_a_colour_is_the_same_in_every_run():
    assert colour_of("cat") == (250, 122, 70)
    code = "from text2seg.render import colour_of; print(colour_of('cat'))"
    printed = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert printed[0] == printed[1] == f"{colour_of('cat')}\n"


@given(st.text())
def test_colours_are_bright_but_not_white(query):
    colour = colour_of(query)
    assert all(0 <= channel <= 255 for channel in colour)
    luminance = np.dot(colour, (0.2126, 0.7152, 0.0722))
    assert 90 < luminance < 225
    assert max(colour) - min(colour) > 60


def test_colours_of_queries_differ():
    assert len({colour_of(f"query {number}") for number in range(100)}) > 95


def test_queries_that_are_shown_together_have_colours_that_can_be_told_apart():
    """One hundred sets of twelve words; alone, words have near colours in most of them."""
    apart, mistaken = [], 0
    for number in range(100):
        queries = [f"word {number} {place}" for place in range(12)]
        together = [drawing._place_of(query) for query in queries]
        mistaken += min(math.dist(*pair) for pair in itertools.combinations(together, 2)) < drawing.NEAR
        colours = np.array([*colours_of(queries).values()], float)
        apart.append(min(np.linalg.norm(one - other) for one, other in itertools.combinations(colours, 2)))
    assert mistaken > 50
    assert min(apart) > 25
    assert len(set(colours_of(f"query {number}" for number in range(60)).values())) == 60


def test_a_colour_is_the_same_in_oklab_and_back():
    for colour in [(255, 136, 0), (0, 0, 0), (255, 255, 255), (144, 116, 233)]:
        assert np.abs(np.subtract(drawing._from_oklab(*drawing._to_oklab(colour)), colour)).max() <= 1


def test_a_given_colour_is_kept_and_others_can_be_told_apart_from_it():
    given = {"dog": colour_of("cat"), "not shown": (1, 2, 3)}
    colours = colours_of(["cat", "dog"], given)
    assert [*colours] == ["cat", "dog"]
    assert colours["dog"] == colour_of("cat")
    assert math.dist(drawing._to_oklab(colours["cat"]), drawing._to_oklab(colours["dog"])) >= drawing.NEAR


def test_a_query_keeps_its_colour_when_another_one_is_added_behind_it():
    queries = [f"query {number}" for number in range(30)]
    assert list(colours_of(queries[:20]).items()) == list(colours_of(queries).items())[:20]
    assert colours_of(["cat", "cat"]) == {"cat": colour_of("cat")}


def test_heat_is_brightest_where_the_map_is_highest():
    scores = np.zeros((3, 4), np.float32)
    scores[0, 3] = 5
    image = heat(scores, np.full((30, 40, 3), 100, np.uint8)).astype(int)
    assert image[4, 35].sum() > image[25, 5].sum() + 150


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_flat_maps_and_maps_with_nan_are_drawn_without_colours(value):
    image = heat(np.full((3, 4), value, np.float32), builders.pixels())
    assert image.shape == (24, 32, 3)
    assert (image[..., 0] == image[..., 2]).mean() > 0.5  # pale grey behind the words, not the colours of a heat map


def test_map_within_rounding_of_a_constant_is_drawn_without_colours():
    """Stretched to the full range, rounding noise would look like hot spots."""
    image = np.full((60, 80, 3), 100, np.uint8)
    noise = np.random.default_rng(0).integers(-2, 3, (3, 4)).astype(np.float32)
    rounding = np.float32(0.3) * (1 + noise * np.finfo(np.float32).eps)
    np.testing.assert_array_equal(heat(rounding, image), heat(np.zeros((3, 4), np.float32), image))
    assert (heat(np.float32(0.3) * (1 + noise * 1e-3), image) != heat(rounding, image)).any()


# --- overlays ------------------------------------------------------------------------------------------------------


def test_without_a_legend_the_overlay_has_the_images_size():
    segmentation = builders.segmentation(builders.segment())
    image = overlay(segmentation, legend=False)
    mask = segmentation.segments[0].mask
    assert image.shape == (24, 32, 3)
    np.testing.assert_array_equal(image[~mask], segmentation.image.pixels[~mask])
    expected = (segmentation.image.pixels[mask].astype(float) + colour_of("ball")) / 2
    assert np.abs(image[mask] - expected).max() <= 1


def test_a_small_segment_is_drawn_over_a_large_one():
    large = builders.segment("large", builders.box_mask(left=2, top=2, width=28, height=20))
    small = builders.segment("small", builders.box_mask())
    for order in ((large, small), (small, large)):
        image = overlay(builders.segmentation(*order), legend=False)
        np.testing.assert_array_equal(image, overlay(builders.segmentation(large, small), legend=False))


@pytest.mark.parametrize("hw", [(1, 1), (24, 32), (40, 33), (3, 900), (900, 3), (500, 700)])
def test_an_overlay_of_any_size_has_room_for_its_legend(hw):
    segmentation = scene(hw)
    image = overlay(segmentation)
    assert image.dtype == np.uint8
    assert image.shape[1] >= 200
    assert image.shape[0] > hw[0] + 25
    assert has(image[-60:], colour_of("ball"))
    assert not has(image[-28:], colour_of("unicorn"))


def test_a_legend_of_many_queries_has_several_lines():
    few = overlay(builders.segmentation(queries=("a", "b")))
    many = overlay(builders.segmentation(queries=[f"query number {number}" for number in range(30)]))
    assert many.shape[0] > few.shape[0]
    assert many.shape[1] == few.shape[1]


def test_an_overlay_without_segments_is_the_image():
    segmentation = builders.segmentation(queries=())
    image = overlay(segmentation)
    np.testing.assert_array_equal(image[::15, ::15], segmentation.image.pixels)


def test_overlay_does_not_change_the_image():
    segmentation = builders.segmentation(builders.segment())
    before = segmentation.image.pixels.copy()
    overlay(segmentation)
    maps_with_points(segmentation)
    np.testing.assert_array_equal(segmentation.image.pixels, before)


def test_a_mask_of_another_size_is_refused():
    segmentation = builders.segmentation(builders.segment(), hw=(32, 24))
    with pytest.raises(ValueError, match=r"size \[32, 24\], got \[24, 32\]"):
        overlay(segmentation)


# --- cut-outs ------------------------------------------------------------------------------------------------------


def test_a_cut_out_is_the_image_inside_and_transparent_outside():
    image, segment = builders.image(), builders.segment(mask=builders.ring_mask())
    cut = cut_out(segment, image)
    assert cut.shape == (24, 32, 4)
    np.testing.assert_array_equal(cut[..., 3], segment.mask * 255)
    np.testing.assert_array_equal(cut[segment.mask, :3], image.pixels[segment.mask])
    assert not cut[~segment.mask].any()
    cropped = cut_out(segment, image, crop=True)
    np.testing.assert_array_equal(cropped, cut[5:20, 3:23])


def test_a_cut_out_of_an_empty_mask_is_all_transparent():
    nothing = builders.segment(mask=np.zeros(builders.HW, np.bool_))
    assert not cut_out(nothing, builders.image(), crop=True).any()


def test_a_cut_out_of_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the image size"):
        cut_out(builders.segment(), builders.image((32, 24)))


# --- maps with points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hw", [(1, 1), (24, 32), (3, 900), (900, 3), (500, 700)])
def test_maps_with_points_of_images_of_any_size(hw):
    image = maps_with_points(scene(hw))
    assert image.dtype == np.uint8
    assert image.shape[1] < 6 * (LARGEST + 30)
    assert image.shape[0] < 2 * (LARGEST + 100)


def test_points_are_green_or_red_at_their_positions():
    points = builders.points((8.0, 6.0, 1, 1.0), (24.0, 18.0, 0, 0.0))
    plain = builders.segment()
    segment = Segment("ball", plain.mask, 0.9, 0.5, 0.25, points, plain.candidates, 2)
    image = maps_with_points(builders.segmentation(segment))
    found = {}
    for colour in (POSITIVE, NEGATIVE):
        rows, columns = np.nonzero((image == colour).all(-1))
        found[colour] = rows.mean(), columns.mean()
    down, right = np.subtract(found[NEGATIVE], found[POSITIVE])
    scale = 260 / 32  # the least long side of a panel, over the image's
    assert down == pytest.approx(12 * scale, abs=1)
    assert right == pytest.approx(16 * scale, abs=1)


def test_candidates_are_cropped_from_the_square_of_sam():
    logits = np.full((16, 16), -1.0, np.float32)
    logits[:12, 8:] = 1  # the right half of an image of 24 x 32; below lies only padding
    logits[12:] = 1
    mask = _candidate(logits, (90, 120))
    assert mask.shape == (90, 120)
    assert mask[:85, 65:].all()
    assert not mask[:85, :55].any()


def test_of_many_queries_only_those_that_were_found_have_a_row():
    segment = builders.segment("q3", builders.segment().mask)
    heights = []
    for count in (1, MOST_ABSENT, MOST_ABSENT + 1):
        queries = ("q3", *(f"other {number}" for number in range(count - 1)))
        heights.append(len(maps_with_points(builders.segmentation(segment, queries=queries))))
    assert heights == [heights[0], MOST_ABSENT * heights[0], heights[0]]


def test_each_segment_and_each_query_not_found_has_a_row():
    one = maps_with_points(builders.segmentation(builders.segment("a")))
    pair = builders.segment("a"), builders.segment("a")
    three = maps_with_points(builders.segmentation(*pair, queries=("a", "unicorn")))
    assert three.shape == (one.shape[0] * 3, one.shape[1], 3)
    assert has(three[: one.shape[0]], colour_of("a"))
    assert not has(three[2 * one.shape[0] :], colour_of("a"))


def test_one_candidate_and_no_points():
    plain = builders.segment()
    alone = Candidates(plain.candidates.logits[:1], plain.candidates.scores[:1])
    none = builders.points((1.0, 1.0, 1, 1.0))
    none = type(none)(none.xy[:0], none.labels[:0], none.similarity[:0])
    segment = Segment("ball", plain.mask, 0.9, 0.5, 0.25, none, alone, 0)
    image = maps_with_points(builders.segmentation(segment, builders.segment("other")))
    assert not has(image[:200], NEGATIVE)


def test_maps_without_a_query_are_the_image():
    assert maps_with_points(builders.segmentation(queries=())).shape == (195, 260, 3)


def test_a_map_may_have_another_aspect_ratio_than_the_image():
    maps = SimilarityMaps(("a",), np.eye(7, 5, dtype=np.float32)[None], np.zeros(1, np.float32), builders.HW)
    assert maps_with_points(Segmentation(builders.image(), (), maps)).shape[2] == 3


# --- text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_drawn(name):
    segmentation = scene(builders.HW, name)
    assert overlay(segmentation).shape[1] == 480
    assert maps_with_points(segmentation).shape[2] == 3


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30), st.integers(20, 200))
def test_fitted_text_fits(text, width):
    short = fitted(text, 16, width)
    assert text_width(short, 16) <= width
    assert short == printable(text) or short.endswith("…")


def test_text_that_fits_is_not_shortened():
    assert fitted("red ball", 16, 500) == "red ball"


@pytest.fixture
def bare(monkeypatch):
    """A machine without fonts of its own; gives a function that adds one."""
    caches = (drawing._runs, drawing._font_with, drawing._users_font, drawing._letters, drawing._has)

    def forget():
        for cache in caches:
            cache.cache_clear()

    def add(file):
        monkeypatch.setattr(drawing, "_system_fonts", lambda: (str(file),))
        forget()

    monkeypatch.delenv(drawing.FONT_VARIABLE, raising=False)
    monkeypatch.setattr(drawing, "_system_fonts", lambda: ())
    monkeypatch.setattr(drawing, "_said", [])
    forget()
    yield add
    forget()


DEJAVU = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.mark.parametrize("text", ["Schäfchen žluťoučký kůň", "овца", "πρόβατο", "خروف أبيض", "כבש", "ABC ≠ ☃"])
def test_bundled_fonts_draw_common_scripts(bare, caplog, text):
    assert drawing.readable(text)[0] == text
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("白い sheep", r"\u767d\u3044 sheep"),
        ("양", r"\uc591"),
        ("แกะ", r"\u0e41\u0e01\u0e30"),
        ("भेड़", r"\u092d\u0947\u0921\u093c"),
        ("\U00020000", r"\U00020000"),
        ("🐑 ewe", "[sheep] ewe"),
        ("👩\u200d🌾", "[woman][ear of rice]"),
        ("Ａ１", "A1"),
    ],
)
def test_letters_missing_in_all_fonts_are_spelled_out(bare, text, spelled):
    assert drawing.readable(text)[0] == spelled
    assert text_width(text, 16) == text_width(spelled, 16)


def test_missing_letters_are_logged_once_with_a_remedy(bare, caplog):
    for query in ("羊", "山羊", "แกะ"):
        overlay(scene(builders.HW, query))
    (record,) = caplog.records
    assert "no font here has 羊" in record.getMessage()
    assert "TEXT2SEG_FONT" in record.getMessage()


def test_missing_letters_are_not_drawn_as_boxes(bare):
    """Names with different letters look different; the same number of boxes would look equal."""
    images = [overlay(scene((120, 160), name))[160:].tobytes() for name in ("羊毛", "山羊", "แก", "양털")]
    assert len(set(images)) == 4


def test_each_letter_comes_from_the_first_font_that_has_it(bare):
    script = DEJAVU / "STIXGeneral.ttf"
    dejavu = str(DEJAVU / "DejaVuSans.ttf")
    assert drawing._runs("sheep") == (("sheep", drawing.PILLOWS_OWN),)
    assert drawing._runs("Schäfchen weiß") == (("Schäfchen weiß", dejavu),)  # not a mixture
    bare(script)
    letter = next(chr(code) for code in sorted(drawing._letters(str(script))) if not _is_usual(chr(code)))
    assert drawing._runs(f"a{letter}b") == (("a", ""), (letter, str(script)), ("b", ""))
    assert drawing.readable(letter) == (letter, (str(script),))


def _is_usual(letter: str) -> bool:
    return not letter.isprintable() or any(drawing._has(file, letter) for file in drawing._usual_fonts())


def test_a_font_chosen_by_the_user_comes_first(bare, monkeypatch, caplog):
    monkeypatch.setenv(drawing.FONT_VARIABLE, str(DEJAVU / "DejaVuSerif.ttf"))
    drawing._users_font.cache_clear()
    assert drawing._runs("sheep овца") == (("sheep овца", str(DEJAVU / "DejaVuSerif.ttf")),)
    for wrong in ("/nowhere/font.ttf", __file__):
        monkeypatch.setenv(drawing.FONT_VARIABLE, wrong)
        for cache in (drawing._users_font, drawing._font_with, drawing._runs):
            cache.cache_clear()
        assert drawing._runs("sheep") == (("sheep", drawing.PILLOWS_OWN),)
        assert f"TEXT2SEG_FONT={wrong} is not a usable font file" in caplog.text


def test_without_bidirectional_layout_right_to_left_text_is_reordered(bare, monkeypatch):
    monkeypatch.setattr(drawing.features, "check", lambda name: False)
    assert drawing.readable("ab כבש לבן 2")[0] == "ab ןבל שבכ 2"


def test_plots_spell_out_missing_letters(bare):
    figure, (axes,) = charts.strip_and_panels([("羊", builders.pixels())], 1)
    axes.plot([0, 1], label="🐑 овца")
    charts.draw_legend(axes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of letters that it lacks
        charts.pixels_of(figure)
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert r"\u7f8a" in texts
    assert "[sheep] овца" in texts


@pytest.mark.parametrize(
    "name", ["羊" * 500, "ab" * 50_000, "แ" * 3000, "خ" * 3000, "🐑" * 999, "\u0301" * 5000, "\n" * 99]
)
def test_very_long_names_do_not_widen_an_image(bare, name):
    segmentation = scene((120, 160), name)
    assert overlay(segmentation).shape[1] == overlay(scene((120, 160), "a")).shape[1]
    assert maps_with_points(segmentation).shape[1] == maps_with_points(scene((120, 160), "a")).shape[1]
    nothing = builders.segmentation(queries=(name,))
    assert overlay(nothing).shape[1] == overlay(builders.segmentation(queries=("a",))).shape[1]


def test_white_stays_white_where_there_is_nothing_to_show():
    shown = heat(np.zeros((2, 3), np.float32), np.full((24, 320, 3), 255, np.uint8))
    assert (shown[0] == 255).all()
