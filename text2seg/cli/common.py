"""Shared parts of commands: models, queries, tables. Heavy imports are inside functions, so that
`--help` is quick."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from text2seg.cli.terminal import say, waiting
from text2seg.config import AutomaticSettings, MapSettings, ModelSettings, Settings
from text2seg.errors import QueryError, SettingsError
from text2seg.io.names import escaped
from text2seg.queries import Query, parse_queries, shown, split_unions, unions_error

if TYPE_CHECKING:
    from text2seg.clip.shape import ClipKind
    from text2seg.config import SaveKind
    from text2seg.everything import Everything
    from text2seg.ontology import Ontology
    from text2seg.pipeline import Text2Seg
    from text2seg.vocabulary import ClosedVocabulary


def queries_of(
    query: Sequence[str], queries: str, *, way: str = "give --query at least once, or --everything"
) -> list[str]:
    """Return the texts of `--query` (repeated) and `--queries` as typed; `queries.parse_queries` reads both.

    `way` says how the command gets its queries.

    Raises:
        SettingsError: Neither is given, or one cannot be read.
    """
    texts = [*query, *([queries] if queries else [])]
    if not texts:
        raise SettingsError(f"nothing to look for: {way}")
    try:
        parse_queries(texts)
    except QueryError as error:
        raise SettingsError(str(error)) from error
    return texts


def known_queries(
    model: ModelSettings, texts: Iterable[str], settings: Settings | None = None
) -> tuple[tuple[Query, ...], int]:
    """Parse queries before any model is loaded, and print a line for each that the models cannot look for.

    Returns:
        The other queries, and the number of those left out.

    Raises:
        QueryError: A query cannot be read, or all are left out.
    """
    queries = parse_queries(texts)
    known = _split(model, queries, settings)
    return known, len(queries) - len(known)


def known_categories(
    model: ModelSettings, ontology: Ontology, settings: Settings | None = None
) -> tuple[Ontology, int]:
    """Return the ontology without the categories that the models cannot look for, like `known_queries`."""
    from text2seg.ontology import Ontology, queries_of

    names = {query.name for query in _split(model, queries_of(ontology), settings)}
    known = tuple(category for category in ontology.categories if category.name in names)
    return Ontology(known), len(ontology.categories) - len(known)


def known_names(model: ModelSettings, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split names of categories, before any model is loaded, into those that the models know and the others.

    Raises:
        QueryError: All are unknown.
    """
    if (vocabulary := _vocabulary(model)) is None or not names:
        return [*names], []
    unknown = {name: says for name in names for says in vocabulary.split(parse_queries([name]))[1].values()}
    if len(unknown) == len(names):
        raise vocabulary.error([*unknown.values()][:1])
    return [name for name in names if name not in unknown], [*unknown]


def check_words(model: ModelSettings, texts: Sequence[str]) -> None:
    """Raise `SettingsError` if a text is empty, and `QueryError` if the models know none of them."""
    if not all(text.strip() for text in texts):
        raise SettingsError("a text must not be empty")
    if (vocabulary := _vocabulary(model)) is not None:
        unknown = vocabulary.unknown(texts)
        if unknown and len(unknown) == len({*texts}):
            raise vocabulary.error(unknown.values())


def _vocabulary(model: ModelSettings) -> ClosedVocabulary | None:
    from text2seg import weights
    from text2seg.model_card import card_of

    clip, _ = weights.pair(model.model, clip=model.clip, sam=model.sam)
    return card_of(clip, given=model.card).closed_vocabulary


def _split(model: ModelSettings, queries: tuple[Query, ...], settings: Settings | None) -> tuple[Query, ...]:
    vocabulary = _vocabulary(model)
    known, unknown, unions = queries, dict[str, str](), dict[str, str]()
    if vocabulary:
        known, unknown = vocabulary.split(known)
    if settings and settings.points.method == "regions":
        known, unions = split_unions(known)
    if not known:
        raise vocabulary.error(unknown.values()) if vocabulary and unknown else unions_error(unions.values())
    for name, sentence in (*unknown.items(), *unions.items()):
        category = "" if shown(name) in sentence else f"{name}: "
        say(f"left out: {category}{sentence}", file=sys.stderr)
    if vocabulary:
        if unknown:
            say(vocabulary.way_out, file=sys.stderr)
        names = {query.name for query in known}
        for sentence in filter(None, (vocabulary.half_known(each) for each in queries if each.name in names)):
            say(f"note: {sentence}", file=sys.stderr)
    return known


def check_everything(everything: bool, queries: object) -> None:
    """Raise `SettingsError` if --everything is given with words."""
    if everything and queries:
        raise SettingsError("--everything needs no words; leave them out, or leave --everything out")


def check_models(model: ModelSettings, *, sam_only: bool = False) -> None:
    """Check the names and files of the models before anything slow is imported. Missing weights are downloaded.

    With `sam_only`, the CLIP is not needed.

    Raises:
        CheckpointError: A name is unknown, a file is missing, or weights cannot be downloaded.
        SettingsError: There is no folder of graphs, or no CUDA on this machine.
    """
    from text2seg import weights
    from text2seg.io.files import check_is_dir
    from text2seg.model_card import read_card
    from text2seg.settings_fields import cuda_is_impossible
    from text2seg.weights.registry import check_sam, is_published

    if model.graphs is not None:
        check_is_dir(model.graphs, SettingsError, flag="--graphs")
    if model.card is not None:
        read_card(model.card)
    clip, sam = weights.pair(model.model, clip=model.clip, sam=model.sam)
    found = weights.find(sam, "sam")
    check_sam(found, compiled=model.compile, graphs=model.graphs is not None)
    if not sam_only:
        weights.find(clip, "clip")
    if model.device.startswith("cuda") and cuda_is_impossible():
        raise SettingsError(f"no device {model.device!r} here; choose auto or cpu")
    if model.device in ("auto", "cpu"):  # only torch knows whether there is another one
        if not sam_only and is_published(clip):  # open_clip fetches its own
            weights.check_openclip(clip)
        elif not sam_only:
            with weights.naming_missing(found):
                weights.fetch(clip, "clip")
        weights.fetch(sam, "sam")


def check_clip(model: ModelSettings, check: Callable[[ClipKind], object]) -> None:
    """Call `check` with the architecture of the CLIP, if its file tells it, before anything slow is imported."""
    from text2seg import weights
    from text2seg.clip.shape import shape_of

    check_models(model)
    clip, _ = weights.pair(model.model, clip=model.clip, sam=model.sam)
    if (shape := shape_of(clip)) is not None:
        check(shape)


def _check_maps(maps: MapSettings, clip: ClipKind) -> None:
    from text2seg.clip.shape import check_architecture, check_input_size

    check_architecture(clip, maps.architecture)
    if maps.input_size is not None:
        check_input_size(clip, maps.input_size)


def load_models(model: ModelSettings, settings: Settings, *, say_uncalibrated: bool = True) -> Text2Seg:
    """Load the models chosen by the flags, after the checks that need no slow import.

    `say_uncalibrated`: print a line if their presence is not calibrated.
    """
    check_models(model)
    if settings.maps != MapSettings():
        check_clip(model, partial(_check_maps, settings.maps))
    with waiting("loading the models"):
        chosen = chosen_pair(model)
        from text2seg.pipeline import Text2Seg
        from text2seg.session import NOT_CALIBRATED

        models = Text2Seg.load(**{**model.arguments(), "model": chosen}, settings=settings)
    say_names(models.names, model, chosen, is_whole=bool(model.clip and model.sam))
    say_own_card(models.card.sha256, model)
    if say_uncalibrated and models.default_presence(settings) is None:
        given = settings.presence.presence
        own = f"presence is not calibrated for these weights and settings; --presence {given} says what is not found"
        elsewhere = (
            f"presence is calibrated for an input size of {models.card.input_size} and --architecture surgery only, so "
            "nothing counts as absent; leave these flags out, or give --presence"
        )
        says = own if given is not None else elsewhere if models.card.presence else NOT_CALIBRATED
        say(f"text2seg: {says}", file=sys.stderr)
    return models


def load_everything(model: ModelSettings, automatic: AutomaticSettings, settings: Settings) -> Everything:
    """Load the SAM chosen by the flags, like `load_models`."""
    check_models(model, sam_only=True)
    with waiting("loading the model"):
        chosen = chosen_pair(model, sam_only=True)
        from text2seg.everything import Everything

        models = Everything.load(replace(model, model=chosen), automatic, settings=settings)
    say_names(models.names, model, chosen, is_whole=bool(model.sam))
    return models


def chosen_pair(model: ModelSettings, *, sam_only: bool = False) -> Any:
    """Check the models, the device and Pillow's warnings, and return the name of the pair that `model` means."""
    from text2seg import weights

    check_models(model, sam_only=sam_only)
    if model.runtime == "torch":
        from text2seg.runtime import choose_device

        choose_device(model.device)
    # Pillow warns at half of text2seg's own limit.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit of")
    return weights.choose_model(model.model)


def without_why(save: tuple[SaveKind, ...]) -> tuple[SaveKind, ...]:
    """Return the kinds of image files without "why", which explains how words were found; say so if nothing else was
    asked for."""
    if save == ("why",):
        say("text2seg: --everything uses no words, so there is no why image", file=sys.stderr)
    return tuple(kind for kind in save if kind != "why")


def say_names(names: str, model: ModelSettings, chosen: str, *, is_whole: bool) -> None:
    """Print which weights are at work; if nobody chose the bundled ones, also what to download.

    `is_whole` says that the person named all weights, so that none is of the pair.
    """
    from text2seg import weights

    note = (
        ", bundled with text2seg, which knows drawn things only; no published weights are on this machine. "
        f"For photographs, first run: {weights.download_hint()}"
    )
    bundled = model.model != chosen == weights.BUNDLED and not is_whole
    are = "models are" if " with " in names else "model is"
    say(f"text2seg: the {are} {names}{note * bundled}", file=sys.stderr)


def say_own_card(sha256: str, model: ModelSettings) -> None:
    """Print which model card of the user is at work, if any, and how to go back."""
    from text2seg.model_card import file_of_card, user_cards

    if model.card is not None:
        say(f"text2seg: with the model card {model.card}", file=sys.stderr)
    elif (file := file_of_card(sha256)) is not None and file.parent == user_cards():
        say(f"text2seg: with your model card {file}; --card FILE takes another", file=sys.stderr)


# ---- tables

MOST_ROWS = 20
"""Largest number of rows of a table on the terminal; a line below it says where the others are."""


class PlainConsole(Console):
    """A console that prints strings literally: no markup, no emoji codes, control characters escaped except line
    breaks."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, width=width)

    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to `main`; rich would exit with 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(escaped, text.split("\n"))), **options)


def plain_table(title: str, *headings: str) -> Table:
    """Make a table for the terminal. The first column and a column titled "number" hold text, the others values."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        is_text = place == 0 or heading == "number"
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis")
    return table
