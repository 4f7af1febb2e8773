"""What runs in the processes of a Ray cluster: workers that hold the models, and the gate that all ask first.

Neither imports Ray: they are plain classes, and `ray_engine` makes actors of them.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from text2seg.config import ModelSettings, Settings
from text2seg.errors import EngineError, Text2SegError
from text2seg.io.files import is_dir
from text2seg.labelling.engines.local import Batch, Delivery, LocalEngine, Work, described
from text2seg.labelling.journal import differences
from text2seg.labelling.record import Task, failure_record

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

Columns = dict[str, Any]  # a table of Ray Data: arrays or lists, all of one length

DEATHS = 3  # as many workers may die over one batch before its images are written off


class Gate:
    """Says whether a batch may be begun, and keeps what was. One for all workers of a job."""

    def __init__(self) -> None:
        self._is_open = True
        self._begun: set[int] = set()
        self._tries: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """How often this batch has been begun and not ended, this time included; 0 once the gate is closed."""
        if not self._is_open:
            return 0
        self._begun.add(number)
        self._tries[number] = self._tries.get(number, 0) + 1
        return self._tries[number]

    def end(self, number: int) -> None:
        self._tries.pop(number, None)

    def close(self) -> set[int]:
        """No batch begins from now on; gives all that ever did."""
        self._is_open = False
        return self._begun


class Worker:
    """The models in a process of their own, loaded once. Called with batches of tasks, answers with records."""

    def __init__(self, work: Work, model: ModelSettings, settings: Settings, gate: Any, threads: int, decode: int):
        """
        Args:
            gate: with `begin` and `end` as of `Gate`.
            threads: that torch computes with.
            decode: threads that read and decode.
        """
        logging.getLogger("text2seg").setLevel(logging.WARNING)
        self._work, self._gate, self._engine, self._fault = work, gate, None, ""
        try:
            self._engine = LocalEngine(fitting_models(work, model, settings, threads), workers=decode)
        except Text2SegError as error:  # told to whoever started the job, instead of Ray's traceback
            self._fault = f"a worker on {socket.gethostname()} cannot do this job: {error}"

    def __call__(self, columns: Columns) -> Columns:
        """
        Args:
            columns: `number` of each batch and its `tasks` as `pack` makes them.

        Returns:
            For each batch its `number` and its `records` in JSON, the `process` that made them, and `fault`: why this
            worker cannot do any. A batch that was not begun because the job is being stopped has no records.
        """
        answers = [self._answer(int(n), unpack(t)) for n, t in zip(columns["number"], columns["tasks"], strict=True)]
        return {
            "number": np.asarray(columns["number"]),
            "records": [json.dumps(records) for records in answers],
            "process": [os.getpid()] * len(answers),
            "fault": [self._fault] * len(answers),
        }

    def _answer(self, number: int, batch: Batch) -> Delivery:
        tries = 0 if self._engine is None else self._gate.begin(number)
        if not tries or self._engine is None:
            return []
        records = self._engine.run_batch(self._work, batch) if tries <= DEATHS else _written_off(self._work, batch)
        self._gate.end(number)
        return records


def fitting_models(work: Work, model: ModelSettings, settings: Settings, threads: int) -> Text2Seg:
    """The models, once it is sure that this process would compute what the job's fingerprint says.

    Raises:
        EngineError: it would not, or it does not see the images.
    """
    import torch

    from text2seg.pipeline import Text2Seg

    if isinstance(work.folder, Path) and not is_dir(work.folder, EngineError):
        raise EngineError(f"it does not see the folder {work.folder}; use one that all machines share, or a URL")
    torch.set_num_threads(threads)
    models = Text2Seg.load(**model.arguments(), settings=settings)
    changes = differences(dict(work.models), described(models))
    if changes:
        raise EngineError(
            f"its models differ from those of the process that began the job: {'; '.join(changes)}. Name --device and "
            "--precision, and install the same version everywhere"
        )
    return models


def _written_off(work: Work, batch: Batch) -> Delivery:
    error = EngineError(
        f"{DEATHS} workers died over the batch that this image is in, and it was given up; too little memory is the "
        "usual reason. --retry-failures tries again"
    )
    return [
        (task.index, failure_record(task, "segment", error, work.folder / task.file)) for task in batch if task.wanted
    ]


def pack(batch: Batch) -> str:
    """A batch as ASCII, names of files with bytes that are no text included.

    >>> unpack(pack([Task(7, "a.png", (10, 20), False)]))
    [Task(index=7, file='a.png', stamp=(10, 20), wanted=False)]
    """
    return json.dumps([(task.index, task.file, task.stamp, task.wanted) for task in batch])


def unpack(text: str) -> Sequence[Task]:
    """What `pack` packed."""
    return [Task(index, file, tuple(stamp), wanted) for index, file, stamp, wanted in json.loads(text)]
