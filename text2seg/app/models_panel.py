"""The models panel: which models are in use, and buttons to download and switch them.

All visitors share one pair of models. The buttons exist only if `AppSettings.manage_models` allows it; otherwise the
panel shows the command that starts the app with other models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from html import escape
from typing import Any

import gradio as gr

from text2seg import weights
from text2seg.app.messages import alert, message_of, note
from text2seg.app.model_pool import ModelPool
from text2seg.errors import CheckpointError, Text2SegError
from text2seg.pipeline import Text2Seg
from text2seg.weights.registry import MIB

log = logging.getLogger(__name__)

LICENCES = {"clip": "MIT (OpenAI)", "sam": "Apache 2.0 (Meta)", "mobile_sam": "Apache 2.0 (MobileSAM)"}
"""By name, or by kind for all others."""
HEADS = ("Pair", "Weights", "Size", "Licences", "Downloaded")
STEPS = 200
"""Largest number of updates of a progress bar. Each is a message to the page."""
STOPPED = "() => ({__type__: 'update', interactive: false})"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class StoppedError(Exception):
    """A visitor stopped a download."""


def build(model_pool: ModelPool) -> None:
    """Build the panel and the chip that opens it."""
    ModelsPanel(model_pool)


class ModelsPanel:
    """Components of the panel and their events."""

    def __init__(self, model_pool: ModelPool) -> None:
        self._model_pool = model_pool
        self._stop = threading.Event()
        with gr.Accordion(chip(model_pool.models), open=False, elem_id="models") as self._panel:
            now = gr.HTML(models_now(model_pool.models, model_pool.since), padding=False, elem_id="models-now")
            table = gr.HTML(weights_table(model_pool.models), padding=False, elem_id="models-table", render=False)
            if model_pool.settings.may_manage_models and runs_graphs(model_pool.models):
                text = "This app runs ONNX graphs. To use other models, start it without --runtime onnx."
                gr.HTML(note(text), padding=False)
            elif model_pool.settings.may_manage_models:
                self._buttons(now, table)
            else:
                command = f"text2seg app --model {weights.PUBLISHED[0]}"
                text = f"To use other models, the owner of this app restarts it: {command}"
                gr.HTML(note(text), padding=False)
            table.render()  # below the choice, which a phone shows first then
        page = gr.context.Context.root_block
        if page is not None:
            page.load(self._now, outputs=[self._panel, now, table], queue=False, **QUIET)

    def _now(self) -> tuple[gr.Accordion, str, str]:
        models = self._model_pool.models
        return gr.Accordion(label=chip(models)), models_now(models, self._model_pool.since), self._table()

    def _table(self) -> str:
        return weights_table(self._model_pool.models)

    def _buttons(self, now: gr.HTML, table: gr.HTML) -> None:
        with gr.Row(elem_id="models-buttons"):
            choice = gr.Radio(
                [*weights.PAIRS],
                value=weights.PUBLISHED[0],
                label="Pair",
                elem_id="models-pair",
                container=False,
                show_label=False,
                scale=0,
                min_width=460,
            )
            small: dict[str, Any] = {"size": "md", "scale": 0}
            fetch = gr.Button("Download", variant="primary", elem_id="models-download", min_width=120, **small)
            stop = gr.Button("Stop", interactive=False, elem_id="models-stop", min_width=80, **small)
            use = gr.Button(
                "Use for everyone",
                elem_id="models-use",
                min_width=170,
                interactive=is_here(weights.PUBLISHED[0]),
                **small,
            )
        said = gr.HTML("", padding=False, elem_id="models-said")
        choice.input(
            lambda pair: (gr.Button(interactive=is_here(pair)), gr.Button(interactive=pair != weights.BUNDLED), ""),
            [choice],
            [use, fetch, said],
            queue=False,
            **QUIET,
        )
        shown: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [said], "concurrency_id": "models"}
        fetched = fetch.click(self._downloading, [choice], [said, table, stop], concurrency_limit=1, **shown)
        fetched.then(lambda pair: gr.Button(interactive=is_here(pair)), [choice], [use], **QUIET)
        fetched.failure(None, outputs=[stop], js=STOPPED)
        use.click(self._use, [choice], [said, self._panel, now, table], concurrency_limit=1, **shown)
        stop.click(self._stop.set, queue=False, **QUIET)

    def _downloading(self, pair: str, progress: gr.Progress = gr.Progress()) -> Iterator[tuple[Any, Any, gr.Button]]:  # noqa: B008
        """Download a pair. The Stop button is active meanwhile."""
        self._stop.clear()
        yield gr.skip(), gr.skip(), gr.Button(interactive=True)
        yield *self._download(pair, progress), gr.Button(interactive=False)

    def _download(self, pair: str, progress: gr.Progress) -> tuple[str, str]:
        """Download the missing weights of a pair, and check the hashes of those that are here."""
        try:
            clip, sam = weights.pair(pair)
            both: tuple[tuple[str, weights.registry.Kind], ...] = ((clip, "clip"), (sam, "sam"))
            for name, kind in both:
                progress(0, desc=f"{name}: checking")
                with weights.naming_missing(*([weights.find(sam, "sam")] if kind == "clip" else [])):
                    weights.fetch(name, kind, check=True, report=self._reporter(name, progress))
        except StoppedError:
            return note("Stopped. The next download resumes here."), self._table()
        except CheckpointError as error:
            return alert(message_of(error)), self._table()
        return note(f"The weights of {pair} are on this machine, and their hashes are correct."), self._table()

    def _reporter(self, name: str, progress: gr.Progress) -> Callable[[int, int | None], None]:
        last = -1

        def report(have: int, total: int | None) -> None:
            nonlocal last
            if self._stop.is_set():
                raise StoppedError
            step = STEPS * have // total if total else have // MIB
            if step != last:
                last = step
                progress((have // MIB, total // MIB if total else None), desc=f"{name}, in MiB", unit="MiB")

        return report

    def _use(self, pair: str, progress: gr.Progress = gr.Progress()) -> tuple[str, gr.Accordion, str, str]:  # noqa: B008
        """Load a downloaded pair and use it for all new work."""
        lacking = _lacking(pair)
        if pair == _pair_of(self._model_pool.models):
            return note(f"{pair} is in use already."), *self._now()
        if lacking:
            text = f"{' and '.join(lacking)} of {pair}: not on this machine yet, or damaged. Download the pair first."
            return alert(text), *self._now()
        progress(0, desc=f"Loading {pair}")
        try:
            self._model_pool.use(self._model_pool.load(pair))
        except Text2SegError as error:
            says = message_of(error).rstrip(".")
            return alert(f"{says}. If a file is damaged, delete it and press “Download”."), *self._now()
        log.info("all new work uses %s", pair)
        return note(f"Everyone who uses this app now works with {pair}, from the next image or query."), *self._now()


def chip(models: Text2Seg) -> str:
    """Return the label of the chip: the pair, or CLIP and SAM by name."""
    return f"Model: {_pair_of(models)}{_runtime(models)}"


def models_now(models: Text2Seg, since: datetime | None = None) -> str:
    """Return HTML that says which models are in use, since when, and what they know."""
    vocabulary = models.closed_vocabulary
    calibration = models.card.presence
    below = f"calibrated: below {calibration.threshold:.2f} a thing counts as not found" if calibration else ""
    presence = f"Presence is {below or 'not calibrated'}."
    in_use = f"{name_of(models)}{f', in use since {since:%d %B, %H:%M}' if since else ''}."
    if not vocabulary:
        return note(f"{in_use} Search for anything in words. {presence}")
    names = sorted(vocabulary.names)
    return (
        f'<p class="t2s-note">{escape(in_use)} It knows {len(names)} {escape(vocabulary.things)} and nothing '
        f"else. For photographs, use the weights below. {escape(presence)}</p>"
        f'<details class="t2s-known"><summary>What it knows</summary><p>{", ".join(map(escape, names))}</p></details>'
    )


def name_of(models: Text2Seg) -> str:
    """Return the names of CLIP and SAM, and the runtime unless it is torch."""
    return f"{models.names}{_runtime(models)}"


def runs_graphs(models: Text2Seg) -> bool:
    return models.provenance().get("runtime") == "onnx"


def weights_table(models: Text2Seg | None = None) -> str:
    """Return an HTML table of the pairs: names, sizes, licences, and whether they are downloaded. That of `models` is
    marked."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
    used = _pair_of(models) if models else ""
    rows = "".join(f"<tr>{_row(pair, is_used=pair == used)}</tr>" for pair in weights.PAIRS)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _row(pair: str, *, is_used: bool) -> str:
    found, is_bundled = _statuses(pair), pair == weights.BUNDLED
    sizes = [weights.find(each.name, each.kind).size or each.path.stat().st_size for each in found]
    lacking = [
        f"{each.kind.upper()} {each.name} ({size // MIB:,} MiB) is {each.status}"
        for each, size in zip(found, sizes, strict=True)
        if each.status != "ok"
    ]
    is_begun = any(each.status != "missing" for each in found)
    cells = (
        pair + ", in use" * is_used,
        " + ".join(f"{each.kind.upper()} {each.name}" for each in found) + ", for drawings" * is_bundled,
        " + ".join(f"{size // MIB:,}" for size in sizes) + " MiB",
        "that of text2seg" if is_bundled else ", ".join(LICENCES.get(each.name, LICENCES[each.kind]) for each in found),
        "bundled" if is_bundled else _downloaded(lacking) if is_begun else "no",
    )
    return "".join(f'<td data-head="{head}">{escape(cell)}</td>' for head, cell in zip(HEADS, cells, strict=True))


def _downloaded(lacking: list[str]) -> str:
    """Return "yes", or which weights of a pair are missing or damaged."""
    return f"{', '.join(lacking)}; press “Download”" if lacking else "yes"


def _pair_of(models: Text2Seg) -> str:
    """Return the name of the pair, or those of CLIP and SAM."""
    names = _names(models)
    return next((pair for pair, both in weights.PAIRS.items() if both == names), " + ".join(names))


def _names(models: Text2Seg) -> tuple[str, str]:
    origin: Any = models.provenance()
    clip, sam = (origin.get(kind, {}).get("name", "custom") for kind in ("clip", "sam"))
    return clip, sam


def _runtime(models: Text2Seg) -> str:
    return f" in ONNX Runtime ({models.provenance()['precision']})" if runs_graphs(models) else ""


def is_here(pair: str) -> bool:
    """Return whether the weights of a pair are on this machine, as far as their sizes tell."""
    return not _lacking(pair)


def _lacking(pair: str) -> list[str]:
    return [status.name for status in _statuses(pair) if status.status != "ok"]


def _statuses(pair: str) -> list[weights.Status]:
    """Return the statuses of the CLIP and the SAM of a pair."""
    both = [*zip(weights.pair(pair), ("clip", "sam"), strict=True)]
    return [status for status in weights.statuses() if (status.name, status.kind) in both]
