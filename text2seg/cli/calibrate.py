"""`text2seg calibrate`: make a model card from images with true masks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from text2seg.calibration import FEW_IMAGES, FEWEST_IMAGES
from text2seg.cli.common import check_clip, load_models
from text2seg.cli.terminal import exit_status, log_to_terminal, say, say_failures
from text2seg.config import ModelSettings, Settings
from text2seg.errors import CheckpointError, ImageError, SettingsError

COCO = "coco"


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Calibrate weights on images with true masks, and write a model card and a page.

    Presence ("found" and "not found"), the choice among SAM's masks and the bounds of regions are fitted. The numbers
    on the page are of images that the fit had not seen. From then on, text2seg finds the card by the hashes of the
    weights. If it is stopped, by Ctrl-C or in any other way, run the same command again to go on.

    Example: text2seg calibrate coco --images 500 --model base

    Example: text2seg calibrate truth.json --images photos --model base
    """

    truth: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TRUTH.json|coco", help_behavior_hint="")]]
    """COCO file with true masks; or coco: download what is needed of COCO val2017 from its server."""
    images: Annotated[str | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of the images. With coco: the number of images to download, 10 or more, 500 by default."""
    output: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """File for the card. Default: in cards/ of the folder of checkpoints, where text2seg finds it."""
    report: Path = Path("outputs/calibration.html")
    """File for the page."""
    overwrite: bool = False
    """Replace an existing card and page."""
    coco_folder: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder for the files of COCO. Default: coco/ in the folder of checkpoints."""
    input_size: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """CLIP's input in pixels. The card is for this size and makes it the default of these weights. Default: that of the
    model card, or 512."""
    model: ModelSettings = field(default_factory=ModelSettings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        count = image_count(self.images or "500") if self.truth == COCO else 0
        from text2seg.io.names import fit_file_name
        from text2seg.io.writing import check_writable, discard, make_folder, write_atomically

        inputs = [] if count else [self.truth]
        check_writable(self.report, overwrite=self.overwrite, flag="--report", inputs=inputs, text=True)
        if self.output is not None:
            check_writable(self.output, overwrite=self.overwrite, inputs=[*inputs, self.report], text=True)
        else:
            self._check_place()
        own = None if count else _read(Path(self.truth), self.images)
        if count:
            self._check_not_drawings()
        self._check_input_size()
        models = load_models(self.model, Settings(), say_uncalibrated=False)
        if self.input_size is not None:
            models = models.with_card(models.card.model_copy(update={"input_size": self.input_size}))
        output = self.output or _place_of_card(models.provenance())
        if self.output is None:  # of weights whose hashes were not known before
            check_writable(output, overwrite=self.overwrite, text=True)
        truth, folder = own or fetched_coco(count, self.coco_folder)
        from text2seg.calibration.card import calibrate, is_worse
        from text2seg.calibration.page import render_page

        drawn = f"COCO val2017, {len(truth['images'])} images drawn at random"
        data = drawn if count else "/".join(Path(self.truth).absolute().parts[-2:])
        partial = output.with_name(fit_file_name(output.name, ".partial"))
        make_folder(partial.parent)
        try:
            result = calibrate(
                models, truth, folder, data=data, progress=True, announce=_announce, partial_results=partial
            )
        except KeyboardInterrupt:
            kept = f"; what was found so far is in {partial}, and the same command again goes on"
            raise KeyboardInterrupt(f"stopped{kept if partial.exists() else ''}") from None
        write_atomically(output, [result.card.to_json()])
        write_atomically(self.report, [render_page(result).encode()])
        discard(partial)
        say_failures(result.failures, all_in=str(self.report), verbose=self.verbose)
        if result.missing:
            say(f"{result.missing} images of the ground truth are not in {folder}", file=sys.stderr)
        if result.unknown:
            say(f"the models do not know {len(result.unknown)} of the categories", file=sys.stderr)
        if result.few:
            say(f"fewer than {FEW_IMAGES} images: the intervals are wide", file=sys.stderr)
        for heading, fact in result.card.facts().items():
            say(f"{heading}: {fact}")
        say(f"card: {output}")
        if is_worse(result.card):
            say(
                "warning: with this card the masks are worse than without calibration; do these images show what the "
                "models know? Delete the card if not",
                file=sys.stderr,
            )
        if self.output is None:
            say("from now on all commands use this card for these weights; to go back to what was before, delete it")
        say(f"page: {self.report}")
        return exit_status(result.images, len(result.failures) + result.missing)

    def _check_input_size(self) -> None:
        """Raise `SettingsError` if CLIP cannot have this input, before the models are loaded."""
        from text2seg.clip.shape import check_input_size

        if (size := self.input_size) is not None:
            check_clip(self.model, lambda clip: check_input_size(clip, size))

    def _check_not_drawings(self) -> None:
        """Raise `SettingsError` if nobody chose the demo model, but no other weights are on this machine: COCO has
        photographs."""
        from text2seg import weights

        given = self.model.model != "auto" or self.model.clip or self.model.sam
        if not given and weights.choose_model(self.model.model) == weights.BUNDLED:
            raise SettingsError(
                "no published weights are on this machine, and the bundled ones know drawings, not the photographs "
                f"of COCO; first run: {weights.download_hint()}"
            )

    def _check_place(self) -> None:
        """Raise `OutputError` if the card cannot be written where text2seg finds it; before the models are loaded."""
        from text2seg import weights
        from text2seg.io.writing import check_writable
        from text2seg.model_card import hashes_of, place_of_card

        clip, sam = hashes_of(*weights.pair(self.model.model, clip=self.model.clip, sam=self.model.sam))
        if clip and sam:
            check_writable(place_of_card(clip, sam), overwrite=self.overwrite, text=True)


def _announce(images: int, cut_out: int, seconds: float) -> None:
    from text2seg.explain.estimate import words_for

    say(
        f"{images} images, four passes. In the last, SAM cuts out everything in {cut_out} of them. That takes about "
        f"{words_for(seconds)}. Ctrl-C keeps what is done, and the same command again goes on.",
        file=sys.stderr,
    )


def image_count(images: str) -> int:
    """Read the number of images to download. Raises `SettingsError`."""
    if not images.isdecimal() or int(images) < FEWEST_IMAGES:
        needed = f"{FEWEST_IMAGES} or more, such as 500"
        raise SettingsError(f"with coco, --images is the number of images to download, {needed}; got {images!r}")
    return int(images)


def fetched_coco(
    count: int, folder: Path | None, *, seed: int = 0, to_score: bool = False
) -> tuple[Mapping[str, Any], Path]:
    """Download what is needed of COCO val2017, and say before what that is. Returns truth and folder of images."""
    from text2seg.coco.download import announcement, default_folder, fetch_val2017

    folder = folder or default_folder()
    say(f"text2seg: {announcement(count, folder)}", file=sys.stderr)
    return fetch_val2017(count, folder, seed=seed, to_score=to_score)


def _read(truth: Path, images: str | None) -> tuple[Mapping[str, Any], Path]:
    """Return a ground truth and the folder of its images."""
    from text2seg.coco.dataset import read_dataset
    from text2seg.io.files import check_is_dir

    if images is None:
        raise SettingsError(f"where are the images of {truth}? Add --images FOLDER")
    check_is_dir(Path(images), ImageError, flag="--images")
    return read_dataset(truth), Path(images)


def _place_of_card(provenance: Mapping[str, Any]) -> Path:
    """Return where text2seg finds the card of these weights. Raises `CheckpointError` if they have no hashes."""
    from text2seg.model_card import place_of_card

    try:
        return place_of_card(provenance["clip"]["sha256"], provenance["sam"]["sha256"])
    except KeyError as error:
        raise CheckpointError("these weights were not read from files, so they cannot have a card") from error
