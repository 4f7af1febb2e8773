"""Batches of a labelling job on a Ray cluster, through Ray Data: an existing cluster, or one on this machine."""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from text2seg.config import ModelSettings, RaySettings, Settings
from text2seg.errors import EngineError, SettingsError
from text2seg.labelling.engines.local import Batch, Deliver, Work
from text2seg.labelling.engines.ray_worker import Gate, Worker, pack

PATIENCE = 10.0  # seconds in which a cluster must answer
HEALTH_PATIENCE = 60.0  # and this many to show that it is well; Ray takes 40 to find out that something is no Ray
STORE_BYTES = 256 << 20  # Ray's memory for what is under way; only paths and records are, and beyond it Ray uses disk

_ENVIRONMENT = {  # where the user says nothing else
    "RAY_USAGE_STATS_ENABLED": "0",  # no call home
    "RAY_worker_niceness": "0",  # 15 by default: beside anything else the workers would hardly run
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray reports its own way of making actors as an error; errors come back anyway
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will be; unset, Ray warns of it
}


def import_ray() -> Any:
    """Ray, told to send no usage statistics. Raises `SettingsError` where it is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise SettingsError(
            f'--engine ray needs {error.name}, which is not installed: pip install "text2seg[ray]"'
        ) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def connected(settings: RaySettings) -> Iterator[Any]:
    """Ray, connected. A connection that was there before is used and left; else it ends with the context, and the
    workers with it.

    Raises:
        SettingsError: Ray is not installed, or the address is none that can be used.
        EngineError: there is no such cluster, it does not answer, or it can never hold a worker.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    check_reachable(settings)
    if settings.address not in (None, "auto"):
        _check_health(str(settings.address))
    _connect(ray, settings)
    try:
        if settings.address is None:
            _check_room(ray, settings)
        yield ray
    finally:
        ray.shutdown()


def check_reachable(settings: RaySettings) -> None:
    """Raise as `connected` where Ray is not installed, or nothing answers at the address."""
    import_ray()
    if settings.address not in (None, "auto"):
        _check_answers(str(settings.address))


def _connect(ray: Any, settings: RaySettings) -> None:
    address, more = settings.address, {}
    if address is None:
        # Written out, or Ray would join a cluster that RAY_ADDRESS names.
        address, more = "local", {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as error:  # RuntimeError, ConnectionError, TimeoutError, ValueError, …
        where = "Ray on this machine" if settings.address is None else f"the Ray cluster at {address}"
        raise EngineError(
            f"{where} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:300]}); `ray status` says "
            "what there is, and without --address the job runs on this machine"
        ) from error


def _check_answers(address: str) -> None:
    """Whether anything listens there; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise SettingsError(
            f"address must be host:port of the cluster's head, or auto, got {address}; Ray Data does not run through "
            "Ray's client, so start text2seg on a machine of the cluster (ray job submit does)"
        )
    if not (colon and host and port.isdigit()):
        raise SettingsError(f"address must be host:port of the cluster's head, or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave --address out "
            "to run on this machine"
        ) from error


def _check_health(address: str) -> None:
    """Whether what listens there is a Ray that this one understands. In a process of its own, because it cannot be
    stopped otherwise, and `ray.init` would try for a quarter of an hour."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        is_well = subprocess.run(command, capture_output=True, timeout=HEALTH_PATIENCE, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        is_well = False
    if not is_well:
        raise EngineError(
            f"what listens at {address} does not answer as a Ray cluster of this release; `ray health-check --address "
            f"{address}` says more"
        )


def _check_room(ray: Any, settings: RaySettings) -> None:
    """A cluster of our own does not grow, so what it cannot hold now it never will."""
    there = ray.cluster_resources()
    for kind, each in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker)):
        wanted, has = each * settings.min_workers, there.get(kind, 0)
        if wanted > has:
            raise EngineError(
                f"{settings.min_workers} workers of {each:g} {kind}s need {wanted:g}, and this machine has {has:g}; "
                f"choose fewer --min-workers or --{kind.lower()}s-per-worker"
            )


MOST_PIECES = 10_000  # Ray keeps books on each piece of the job; beyond this many batches, a piece has several
POLL = 0.2  # seconds between looks at whether the job is to stop
WAITING = 64  # answers that wait to be written
GRACE = 10.0  # seconds for the dataset to end once nobody reads it
QUIET = 120.0  # seconds without an answer after which the log says what is being waited for

Row = dict[str, Any]

_log = logging.getLogger(__name__)


class RayEngine:
    """Workers on a cluster, each with the models in a process of its own."""

    def __init__(
        self,
        model: ModelSettings | None = None,
        settings: Settings | None = None,
        ray: RaySettings | None = None,
        *,
        workers: int = 4,
    ) -> None:
        """
        Args:
            model, settings: what each worker loads. Where that is not what the job's own models are, `run` raises.
            workers: threads of each worker that read and decode images.
        """
        self._model, self._settings = model or ModelSettings(), settings or Settings()
        self._ray, self._decode = ray or RaySettings(), workers

    def check(self) -> None:
        """Raise what `run` would at once, before models are loaded in vain: no Ray, or nothing at the address."""
        check_reachable(self._ray)

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        """As `Engine.run`.

        Raises:
            SettingsError: Ray is not installed, or the address is none that can be used.
            EngineError: no cluster answers, it cannot hold a worker, a worker cannot do this job, or Ray gives up.
        """
        rows: list[Row] = [{"number": number, "tasks": pack(batch)} for number, batch in enumerate(batches)]
        if not rows or stopping():
            return
        with connected(self._ray) as ray:
            # On this very machine, so that it lives as long as the job does; it takes no processor worth counting.
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            gate = ray.remote(Gate).options(num_cpus=0, scheduling_strategy=here).remote()
            try:
                with closing(_answers(self._stream(ray, work, rows, gate), stopping)) as answers:
                    _receive(answers, set(range(len(rows))), deliver, lambda: ray.get(gate.close.remote()))
            except ray.exceptions.RayError as error:
                raise _gave_up(error) from error
            finally:  # a connection that is not ours stays, and its workers would go on
                try:
                    gate.close.remote()
                except Exception as error:  # Ray is gone, and so are they; what ended the job is the error to tell
                    _log.info("the gate cannot be closed: %s", error)

    def _stream(self, ray: Any, work: Work, rows: list[Row], gate: Any) -> Any:
        """The answers, as a dataset that is computed while it is read, in any order."""
        pieces = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_PIECES))
        context = pieces.context  # the dataset's own
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        context.target_max_block_size = 1  # so each answer is a block, and comes at once instead of with its piece
        return pieces.map_batches(
            Worker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=self._ray.min_workers, max_size=self._ray.max_workers),
            num_cpus=self._ray.cpus_per_worker,
            num_gpus=self._ray.gpus_per_worker,
            fn_constructor_kwargs={
                "work": work,
                "model": self._model,
                "settings": self._settings,
                "gate": _Asked(gate),
                "threads": self._ray.cpus_per_worker,
                "decode": self._decode,
            },
        )


class _Asked:
    """The gate as a worker sees it: calls that wait for their answer."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, number: int) -> int:
        import ray

        tries: int = ray.get(self._actor.begin.remote(number))
        return tries

    def end(self, number: int) -> None:
        self._actor.end.remote(number)


def _receive(answers: Iterator[Row | None], missing: set[int], deliver: Deliver, close: Callable[[], set[int]]) -> None:
    """Deliver each batch once. From the None on, which says that the job is to stop, only what was begun by then."""
    for answer in answers:
        if answer is None:
            missing &= close()
        elif answer["fault"]:
            raise EngineError(answer["fault"])
        elif answer["number"] in missing:
            missing.discard(answer["number"])
            if records := json.loads(answer["records"]):
                deliver([(index, record) for index, record in records])
        if not missing:
            return


def _answers(dataset: Any, stopping: Callable[[], bool]) -> Generator[Row | None, None, None]:
    """The rows of a dataset, read in a thread so that a stop is seen while none comes; it is told by a None, once.

    Raises:
        EngineError: Ray gave up.
    """
    waiting: queue.Queue[Row | Exception | None] = queue.Queue(WAITING)
    closed = threading.Event()

    def put(item: Row | Exception | None) -> None:
        while not closed.is_set():
            try:
                return waiting.put(item, timeout=POLL)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for row in dataset.iter_rows():
                put(row)
                if closed.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    reader = threading.Thread(target=read, name="text2seg-ray", daemon=True)
    reader.start()
    is_told, heard = False, time.monotonic()
    try:
        while True:
            if not is_told and stopping():
                is_told = True
                yield None
            try:
                item = waiting.get(timeout=POLL)
            except queue.Empty:
                if time.monotonic() - heard > QUIET:
                    _log.warning(
                        "no answer from any worker for %.0f seconds; `ray status` says what Ray waits for", QUIET
                    )
                    heard = time.monotonic()
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise _gave_up(item) from item
            heard = time.monotonic()
            yield item
    finally:
        closed.set()
        reader.join(GRACE)  # it must not find Ray gone: it would report that, and begin another Ray


def _gave_up(error: Exception) -> EngineError:
    """Ray's errors hold the worker's whole traceback; its last line says what was wrong."""
    _log.info("Ray gave up", exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return EngineError(
        f"Ray gave up the job ({type(error).__name__}: {lines[-1][:300]}); what is done is kept, and the same command "
        "goes on"
    )
