"""The processes of a Ray cluster: workers with the models, and the gate that gives them permission to start a batch.

Both are plain classes without Ray; `ray_engine` turns them into actors.
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
from text2seg.labelling.engine import (
    Batch,
    Delivery,
    LocalEngine,
    Task,
    Work,
    failure_record,
    model_identity,
)
from text2seg.labelling.journal import differences

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

Columns = dict[str, Any]  # a table of Ray Data: arrays or lists of equal length

DEATHS = 3  # workers that may die over one batch before its images become failures


class Gate:
    """Gives workers permission to start a batch. One for all workers of a job."""

    def __init__(self) -> None:
        self._is_open = True
        self._begun: set[int] = set()
        self._tries: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """Return how often this batch was started without an end, this time included; 0 if the gate is closed."""
        if not self._is_open:
            return 0
        self._begun.add(number)
        self._tries[number] = self._tries.get(number, 0) + 1
        return self._tries[number]

    def end(self, number: int) -> None:
        """Note that a batch has ended."""
        self._tries.pop(number, None)

    def close(self) -> set[int]:
        """Let no further batch start. Returns the numbers of all that did."""
        self._is_open = False
        return self._begun


class Worker:
    """A process that loads the models once. It is called with batches of tasks and returns their records."""

    def __init__(self, work: Work, model: ModelSettings, settings: Settings, gate: Any, threads: int, decode: int):
        """
        Args:
            gate: has `begin` and `end` of `Gate`.
            threads: number of threads of torch.
            decode: number of threads that read and decode images.
        """
        logging.getLogger("text2seg").setLevel(logging.WARNING)
        self._work, self._gate, self._engine, self._fault = work, gate, None, ""
        try:
            self._engine = LocalEngine(fitting_models(work, model, settings, threads), workers=decode)
        except Text2SegError as error:  # returned with the answers, instead of Ray's traceback
            self._fault = f"a worker on {socket.gethostname()} cannot run this job: {error}"

    def __call__(self, columns: Columns) -> Columns:
        """
        Args:
            columns: `number` of each batch and its `tasks` as `pack` makes them.

        Returns:
            For each batch its `number`, its `records` in JSON, the id of the `process`, and `fault`: why this worker
            cannot run the job. A batch that did not start, because the job stops, has no records.
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
        records = self._engine.run_batch(self._work, batch) if tries <= DEATHS else _give_up(self._work, batch)
        self._gate.end(number)
        return records


def fitting_models(work: Work, model: ModelSettings, settings: Settings, threads: int) -> Text2Seg:
    """Load the models, and check that they would compute what the job's fingerprint says.

    Raises:
        EngineError: they differ, or this process cannot see the folders of the job.
    """
    import torch

    from text2seg.pipeline import Text2Seg

    if isinstance(work.folder, Path) and not is_dir(work.folder, EngineError):
        raise EngineError(f"it cannot see the folder {work.folder}; use one that all machines share, or a URL")
    if work.images and not is_dir(work.images.folder, EngineError):
        raise EngineError(f"it cannot see the folder {work.images.folder}; choose an --output that all machines share")
    torch.set_num_threads(threads)
    models = Text2Seg.load(**model.arguments(), settings=settings)
    changes = differences(dict(work.models), model_identity(models))
    if changes:
        raise EngineError(
            f"its models differ from those of the process that started the job: {'; '.join(changes)}. Give --device "
            "and --precision, and install the same version everywhere"
        )
    return models


def _give_up(work: Work, batch: Batch) -> Delivery:
    error = EngineError(
        f"{DEATHS} workers died over the batch of this image, usually for lack of memory; try again with "
        "--retry-failures"
    )
    return [
        (task.index, failure_record(task, "segment", error, work.folder / task.file))
        for task in batch
        if task.needs_record
    ]


def pack(batch: Batch) -> str:
    """Return a batch as ASCII text, which also holds file names that are not valid Unicode.

    >>> unpack(pack([Task(7, "a.png", (10, 20), False)]))
    [Task(index=7, file='a.png', stamp=(10, 20), needs_record=False)]
    """
    return json.dumps([(task.index, task.file, task.stamp, task.needs_record) for task in batch])


def unpack(text: str) -> Sequence[Task]:
    """Return the tasks that `pack` was given."""
    return [Task(index, file, tuple(stamp), needs_record) for index, file, stamp, needs_record in json.loads(text)]
