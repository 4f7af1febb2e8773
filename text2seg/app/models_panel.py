"""Which models are at work and what they know, and the way to others: download with progress, then use.

All visitors share one pair of models. So a visitor sees buttons here only where the settings allow it; elsewhere the
panel says what whoever runs the app would type.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

import gradio as gr

from text2seg import weights
from text2seg.app.messages import alert, note, words_of
from text2seg.app.model_pool import ModelPool
from text2seg.errors import CheckpointError, Text2SegError
from text2seg.pipeline import Text2Seg
from text2seg.weights.registry import MIB

log = logging.getLogger(__name__)

LICENCES = {"clip": "MIT (OpenAI)", "sam": "Apache 2.0 (Meta)"}
OFFERED = tuple(name for name in weights.PAIRS if name != "demo")
DEMO = "CLIP demo with SAM demo"
STEPS = 200
"""A bar moves this many times at most; every move is a message to the page."""
STOPPED = "() => ({__type__: 'update', interactive: false})"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


class StoppedError(Exception):
    """The visitor has stopped a download."""


def build(model_pool: ModelPool) -> None:
    """Build the line that says what is at work, and the panel under it."""
    ModelsPanel(model_pool)


class ModelsPanel:
    """The panel's components and what their events do."""

    def __init__(self, model_pool: ModelPool) -> None:
        self._model_pool = model_pool
        self._stop = threading.Event()
        now = gr.HTML(at_work(model_pool.models), padding=False, elem_id="models-now")
        with gr.Accordion("Models and weights", open=False, elem_id="models"):
            table = gr.HTML(weights_table(), padding=False, elem_id="models-table")
            if model_pool.settings.may_manage_models and runs_graphs(model_pool.models):
                told = "ONNX graphs of these models are at work. For others, start this app without --runtime onnx."
                gr.HTML(note(told), padding=False)
            elif model_pool.settings.may_manage_models:
                self._buttons(now, table)
            else:
                told = f"text2seg app --model {OFFERED[0]}"
                gr.HTML(note(f"Whoever runs this app chooses the model when starting it: {told}"), padding=False)
        page = gr.context.Context.root_block
        if page is not None:
            page.load(lambda: (at_work(model_pool.models), weights_table()), outputs=[now, table], queue=False, **QUIET)

    def _buttons(self, now: gr.HTML, table: gr.HTML) -> None:
        with gr.Row():
            choice = gr.Radio(
                [*weights.PAIRS], value=OFFERED[0], label="Pair", elem_id="models-pair", scale=2, min_width=280
            )
            fetch = gr.Button("Download", variant="primary", elem_id="models-download", min_width=120)
            stop = gr.Button("Stop", interactive=False, elem_id="models-stop", min_width=80)
            use = gr.Button("Use for everyone", elem_id="models-use", min_width=140)
        said = gr.HTML("", padding=False, elem_id="models-said")
        shown: dict[str, Any] = {"api_visibility": "private", "show_progress_on": [said], "concurrency_id": "models"}
        fetched = fetch.click(self._downloading, [choice], [said, table, stop], concurrency_limit=1, **shown)
        fetched.failure(None, outputs=[stop], js=STOPPED)
        use.click(self._use, [choice], [said, now], concurrency_limit=1, **shown)
        stop.click(self._stop.set, queue=False, **QUIET)

    def _downloading(self, pair: str, progress: gr.Progress = gr.Progress()) -> Iterator[tuple[Any, Any, gr.Button]]:  # noqa: B008
        """A download that can be stopped from when it begins until it ends."""
        self._stop.clear()
        yield gr.skip(), gr.skip(), gr.Button(interactive=True)
        yield *self._download(pair, progress), gr.Button(interactive=False)

    def _download(self, pair: str, progress: gr.Progress) -> tuple[str, str]:
        """Fetch what is missing of a pair; what is there is hashed."""
        try:
            clip, sam = weights.pair(pair)
            wanted: tuple[tuple[str, weights.registry.Kind], ...] = ((clip, "clip"), (sam, "sam"))
            for name, kind in wanted:
                progress(0, desc=f"{name}: looking for it")
                weights.fetch(name, kind, check=True, report=self._reporter(name, progress))
        except StoppedError:
            return note("Stopped. What has come stays, and the next download goes on from there."), weights_table()
        except CheckpointError as error:
            return alert(words_of(error)), weights_table()
        return note(f"The weights of {pair} are on this machine, and their hashes are right."), weights_table()

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

    def _use(self, pair: str, progress: gr.Progress = gr.Progress()) -> tuple[str, str]:  # noqa: B008
        """Load a pair that is here, and do all new work with it."""
        missing = [status.name for status in _statuses(pair) if status.status == "missing"]
        if missing:
            words = f"{' and '.join(missing)} of {pair}: not on this machine yet, download first"
            return alert(words), at_work(self._model_pool.models)
        progress(0, desc=f"Loading {pair}")
        try:
            self._model_pool.use(self._model_pool.load(pair))
        except Text2SegError as error:
            return alert(words_of(error)), at_work(self._model_pool.models)
        log.info("all new work is done with %s", pair)
        words = f"Everyone who uses this app now works with {pair}, from the next picture or query on."
        return note(words), at_work(self._model_pool.models)


def at_work(models: Text2Seg) -> str:
    """A line on the models, and all that they know where that is little."""
    if not models.things:
        return note(f"At work: {name_of(models)}. Ask for anything in words.")
    names = sorted(models.things.names)
    known = ", ".join(escape(name) for name in names)
    here = name_of(models)
    here = "the demo model" if here == DEMO else here
    return (
        f'<details class="t2s-known"><summary>At work: {escape(here)}, which knows '
        f"{len(names)} drawn things and nothing else. <span>Which?</span></summary><p>{known}</p>"
        '<p>For photographs, get the real weights under "Models and weights".</p></details>'
    )


def name_of(models: Text2Seg) -> str:
    """CLIP and SAM by name, and what runs them where that is not torch."""
    origin: Any = models.provenance()
    clip, sam = (origin.get(kind, {}).get("name", "of your own") for kind in ("clip", "sam"))
    runtime = f" in ONNX Runtime ({origin['precision']})" if runs_graphs(models) else ""
    return f"CLIP {clip} with SAM {sam}{runtime}"


def runs_graphs(models: Text2Seg) -> bool:
    return models.provenance().get("runtime") == "onnx"


def weights_table() -> str:
    """The pairs that are published: names, sizes, licences, and whether they are on this machine."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("pair", "weights", "size", "licences", "here"))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(pair))}</tr>" for pair in OFFERED)
    return f'<div class="t2s-scroll"><table class="t2s-table"><tr>{heads}</tr>{rows}</table></div>'


def _cells(pair: str) -> tuple[str, ...]:
    found = _statuses(pair)
    sizes = [weights.find(each.name, each.kind).size or 0 for each in found]
    missing = [each.name for each in found if each.status != "ok"]
    return (
        pair,
        " + ".join(f"{each.kind.upper()} {each.name}" for each in found),
        " + ".join(f"{size // MIB:,}" for size in sizes) + " MiB",
        ", ".join(LICENCES[each.kind] for each in found),
        "yes" if not missing else "no" if len(missing) == len(found) else f"not {missing[0]}",
    )


def _statuses(pair: str) -> list[weights.Status]:
    """Of the CLIP and the SAM of a pair."""
    wanted = [*zip(weights.pair(pair), ("clip", "sam"), strict=True)]
    return [status for status in weights.statuses() if (status.name, status.kind) in wanted]
