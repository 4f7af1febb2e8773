"""`text2seg checkpoints`: list, download and verify weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg import weights
from text2seg.cli.terminal import FAILED, log_to_terminal, say, waiting
from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.names import listed
from text2seg.model_card import CALIBRATE, card_of
from text2seg.settings_fields import check_device_name
from text2seg.weights.registry import is_openclip

if TYPE_CHECKING:
    from text2seg.known_answers import Case


@dataclass(frozen=True, slots=True)
class ListCheckpoints:
    """List the named weights and whether they are on this machine."""

    def run(self) -> int:
        say(f"folder: {weights.folder()} (the environment variable TEXT2SEG_CHECKPOINTS changes it)")
        found = weights.statuses()
        width = max(len(status.name) for status in found)
        for status in found:
            say(f"{status.kind:4}  {status.name:{width}}  {status.status:8}  {status.detail}")
        return 0


@dataclass(frozen=True, slots=True)
class DownloadCheckpoints:
    """Download weights by name: ViT-B/16, vit_h, openclip:…, or a pair: base, light, large, huge."""

    names: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")]
    ]
    """Names of checkpoints or of pairs."""

    def run(self) -> int:
        log_to_terminal()
        if not self.names:
            raise SettingsError("nothing to download: name at least one checkpoint or pair")
        wanted = [*dict.fromkeys(each for name in self.names for each in _expand(name))]
        while wanted:
            (name, kind), *wanted = wanted
            others = [weights.find(*each) for each in wanted if not is_openclip(each[0])]
            with weights.naming_missing(*others):
                say(_fetch(name, kind))
        return 0


@dataclass(frozen=True, slots=True)
class VerifyCheckpoints:
    """Hash the weights on this machine and compare them with the published hashes; or compare their answers.

    Example: text2seg checkpoints verify ViT-B/32 --answers
    """

    names: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="")]
    ] = ()
    """Names of checkpoints or of pairs. Default: all that are on this machine. With --answers, one of a pair is left
    out if it has no published answers."""
    answers: bool = False
    """Ask the weights what others published their answers to, and compare. Downloads the images (a few MB), and the
    weights if they are missing."""
    device: str = "auto"
    """With --answers: auto, cpu, cuda, …"""

    def run(self) -> int:
        log_to_terminal()
        names = [single for name in self.names for single, _ in _expand(name)]
        if self.answers:
            return self._compare_answers()
        with waiting("reading the weights"):
            every = weights.statuses(check=True)
        found = [each for each in every if (each.name in names if names else each.status != "missing")]
        for status in found:
            say(f"{status.kind:4}  {status.name:14}  {status.status:8}  {status.path}  {status.detail}")
        if names and (gone := [each.name for each in found if each.status == "missing"]):
            say(f"text2seg: to get them: text2seg checkpoints download {' '.join(gone)}", file=sys.stderr)
        return FAILED if any(status.status == "damaged" or (names and status.status != "ok") for status in found) else 0

    def _compare_answers(self) -> int:
        """Print our answers beside the published ones. The exit status is 1 if one is not within its tolerance."""
        if not self.names:
            raise SettingsError("name the checkpoint whose answers to compare, such as ViT-B/32 or vit_b")
        check_device_name(self.device)
        from text2seg.cli.common import PlainConsole, plain_table
        from text2seg.known_answers import verify_answers

        failed = asked = 0
        wanted = [cases for name in self.names for cases in _cases_of(name)]
        _say_missing(wanted)
        for cases in wanted:
            table = plain_table(cases[0].weights, "asked", "image", "ours", "published", "within", "source")
            table.columns[-1].justify, table.columns[-1].overflow = "left", "fold"
            verdicts = verify_answers(cases, device=self.device)
            for each in verdicts:
                published = [None if value is None else f"{value:.4f}" for value in each.case.answer]
                table.add_row(
                    each.case.asked,
                    each.case.image,
                    "\n".join(f"{value:.4f}" for value in each.ours),
                    "\n".join(value or "–" for value in published),
                    f"{each.case.tolerance:g}: {'yes' if each.agrees else 'NO'}",
                    each.case.source,
                )
            PlainConsole().print(table)
            failed += sum(not each.agrees for each in verdicts)
            asked += len(verdicts)
        differ = f"{failed} of {asked} answers differ: these are other weights, or text2seg reads them wrongly"
        say(differ if failed else "all answers agree")
        return FAILED if failed else 0


@dataclass(frozen=True, slots=True)
class ShowCheckpoint:
    """Show the file, hash and source of a checkpoint, and its model card: what it knows, and how it was calibrated."""

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]]
    """Name of a checkpoint or of a pair, such as demo or base."""

    def run(self) -> int:
        for name, kind in _expand(self.name):
            if is_openclip(name):
                raise CheckpointError(f"{name} is a model of open_clip; see the list of its published weights")
            checkpoint = weights.find(name, kind)
            status = weights.verify(checkpoint)
            say(f"{kind} {checkpoint.name}: {status.status}, {status.detail}")
            say(f"  file: {status.path}")
            say(f"  from: {checkpoint.url or 'bundled with text2seg'}")
        names = {kind: name for name, kind in _expand(self.name)}
        if "clip" not in names:
            return 0
        card = card_of(names["clip"], names.get("sam"))
        for heading, fact in card.facts().items():
            say(f"{heading}: {fact}")
        if not card.presence:
            whole = f"--model {self.name}" if "sam" in names else f"--clip {self.name} --sam NAME"
            say(f"to calibrate: {CALIBRATE} coco {whole}")
        if card.vocabulary:
            say(f"It knows {len(card.vocabulary)} {card.things}: {', '.join(sorted(card.vocabulary))}")
        return 0


def _cases_of(name: str) -> list[tuple[Case, ...]]:
    """Return the cases of each checkpoint that a name means, and say which one of a pair has none.

    Raises:
        CheckpointError: no case is known of the checkpoint, or of both of the pair.
    """
    from text2seg.known_answers import cases_of, not_published

    found: list[tuple[Case, ...]] = []
    refused: dict[str, CheckpointError] = {}
    for single, _ in _expand(name):
        try:
            found.append(cases_of(single))
        except CheckpointError as error:
            refused[single] = error
    if not found:
        raise not_published(*refused)
    for reason in refused.values():
        say(f"not compared: {reason}", file=sys.stderr)
    return found


def _say_missing(wanted: list[tuple[Case, ...]]) -> None:
    """Print which weights and images are downloaded first.

    Raises:
        CheckpointError: the server cannot be reached. The message names all that is missing.
    """
    from text2seg.known_answers import answers_folder
    from text2seg.weights.download import check_reachable

    files, images = [weights.find(cases[0].weights, cases[0].kind) for cases in wanted], answers_folder()
    missing = {each.file_name: each.url for each in files if not weights.is_here(each)}
    places = [f"weights in {weights.folder()}"] * bool(missing)
    if absent := {case.image: case.url for cases in wanted for case in cases if not (images / case.image).exists()}:
        missing |= absent
        places.append(f"images in {images}")
    if not missing:
        return
    say(f"text2seg: downloading first: {listed([*missing])}", file=sys.stderr)
    for url in filter(None, missing.values()):
        try:
            check_reachable(url)
        except CheckpointError as error:
            sources = " and ".join(f"{name} from {source}" for name, source in missing.items())
            raise CheckpointError(f"{error}. Fetch {sources} by other means, and put {' and '.join(places)}") from error


def _fetch(name: str, kind: Literal["clip", "sam"]) -> Path:
    if is_openclip(name):
        from text2seg.loading import fetch

        return fetch(name, kind)
    return weights.fetch(name, kind, check=True)


def _expand(name: str) -> tuple[tuple[str, Literal["clip", "sam"]], ...]:
    """Return the name and kind of each checkpoint that a name means: two for a pair, else one."""
    if name in weights.PAIRS:
        clip, sam = weights.pair(name)
        return (clip, "clip"), (sam, "sam")
    if is_openclip(name):
        return ((name, "clip"),)
    kinds = {checkpoint.name: checkpoint.kind for checkpoint in weights.known()}
    if name not in kinds:
        names = ", ".join(dict.fromkeys([*weights.PAIRS, *kinds]))
        raise SettingsError(f"there is no checkpoint {name!r}; choose from {names}")
    return ((name, kinds[name]),)
