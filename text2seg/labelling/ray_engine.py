"""Ray engine: runs the batches of a labelling job on a Ray cluster with Ray Data.

The cluster exists already, or is started on this machine. `ray_worker` has what runs in its processes.
"""

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
from dataclasses import replace
from typing import Any

from text2seg.config import ModelSettings, RaySettings, Settings
from text2seg.errors import EngineError, SettingsError
from text2seg.io.images import quiet_libraries
from text2seg.labelling.engine import Batch, Deliver, Work
from text2seg.labelling.ray_worker import Gate, Worker, pack
from text2seg.weights import choose_model

PATIENCE = 10.0  # seconds within which a cluster must answer
HEALTH_PATIENCE = 60.0  # seconds for the health check; Ray needs 40 to notice that something else is listening
STORE_BYTES = 256 << 20  # memory of Ray's object store: it holds paths and records only, and spills to disk

_ENVIRONMENT = {  # defaults that the user may override
    "RAY_USAGE_STATS_ENABLED": "0",  # sends no usage statistics
    "RAY_worker_niceness": "0",  # 15 by default, so workers would hardly run beside other programs
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray logs its own actor start as an error; real errors are returned anyway
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; Ray warns if it is unset
}


def import_ray() -> Any:
    """Import Ray with usage statistics off. Raises `SettingsError` if it is not installed."""
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
    """Connect to Ray. An existing connection is used and kept; a new one ends with the context, as do its workers.

    Raises:
        SettingsError: Ray is not installed, or the address is not usable.
        EngineError: there is no such cluster, it does not answer, or it has no room for a worker.
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
    """Check that Ray is installed and that something answers at the address. Raises as `connected`."""
    import_ray()
    if settings.address not in (None, "auto"):
        _check_answers(str(settings.address))


def _connect(ray: Any, settings: RaySettings) -> None:
    address, more = settings.address, {}
    if address is None:
        # Explicit, or Ray would join the cluster in RAY_ADDRESS.
        address, more = "local", {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with warnings.catch_warnings(), quiet_libraries():  # it prints the level of its log
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except Exception as error:  # RuntimeError, ConnectionError, TimeoutError, ValueError, …
        if _TOO_SLOW in str(error):
            raise EngineError(
                "Ray's processes did not start within the 30 seconds that Ray gives them, because this machine is "
                "busy; run the same command again to go on, or leave out --engine ray"
            ) from error
        where = "Ray on this machine" if settings.address is None else f"the Ray cluster at {address}"
        raise EngineError(
            f"{where} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:300]}); check it with "
            "`ray status`, or leave out --address to run on this machine"
        ) from error


def _check_answers(address: str) -> None:
    """Check that something listens at the address. Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise SettingsError(
            f"address must be host:port of the cluster's head, or auto, got {address}; Ray Data does not work with "
            "Ray's client, so start text2seg on a machine of the cluster, for example with ray job submit"
        )
    if not (colon and host and port.isdigit()):
        raise SettingsError(f"address must be host:port of the cluster's head, or auto, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, or leave out "
            "--address to run on this machine"
        ) from error


def _check_health(address: str) -> None:
    """Check that a Ray cluster of this release listens at the address.

    Runs in a separate process that can be killed: `ray.init` would try for a quarter of an hour.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        is_healthy = subprocess.run(command, capture_output=True, timeout=HEALTH_PATIENCE, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        is_healthy = False
    if not is_healthy:
        raise EngineError(
            f"what listens at {address} is not a Ray cluster of this release; for details run `ray health-check "
            f"--address {address}`"
        )


def _check_room(ray: Any, settings: RaySettings) -> None:
    """Check that a cluster on this machine has room for the workers. It does not grow, so waiting would not help."""
    available = ray.cluster_resources()
    for resource, per_worker in (("CPU", settings.cpus_per_worker), ("GPU", settings.gpus_per_worker)):
        needed, has = per_worker * settings.min_workers, available.get(resource, 0)
        if needed > has:
            raise EngineError(
                f"{settings.min_workers} workers of {per_worker:g} {resource}s need {needed:g}, and this machine has "
                f"{has:g}; choose fewer --min-workers or --{resource.lower()}s-per-worker"
            )


MAX_BLOCKS = 10_000  # Ray keeps metadata of each block; a job of more batches has several in a block
POLL = 0.2  # seconds between checks whether to stop
WAITING = 64  # answers that may wait for the journal
GRACE = 10.0  # seconds for the reading thread to end
QUIET = 120.0  # seconds without an answer after which a warning is logged

_TOO_SLOW = "timed out during startup"
"""Part of Ray's message if its own processes are too slow. Ray has no setting for the time that it gives them."""

Row = dict[str, Any]

_log = logging.getLogger(__name__)


class RayEngine:
    """Runs batches in workers on a cluster. Each worker is a process with its own copy of the models."""

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
            model, settings: what each worker loads. `run` raises if this differs from the job's models.
            workers: number of threads in each worker that read and decode images.
        """
        model = model or ModelSettings()
        # Which weights are there may differ from machine to machine, so auto is resolved on this one.
        pair: Any = choose_model(model.model)
        self._model, self._settings = replace(model, model=pair), settings or Settings()
        self._ray, self._decode = ray or RaySettings(), workers

    def check(self) -> None:
        """Check that Ray is installed and reachable, before the models are loaded. Raises as `run`."""
        check_reachable(self._ray)

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        """As `Engine.run`.

        Raises:
            SettingsError: Ray is not installed, or the address is not usable.
            EngineError: no cluster answers, it has no room, a worker cannot run this job, or Ray gives up.
        """
        rows: list[Row] = [{"number": number, "tasks": pack(batch)} for number, batch in enumerate(batches)]
        if not rows or stopping():
            return
        with connected(self._ray) as ray:
            # The gate runs on this machine, so that it lives as long as the job. It needs next to no CPU.
            this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            )
            gate = ray.remote(Gate).options(num_cpus=0, scheduling_strategy=this_node).remote()
            try:
                with closing(_answers(self._stream(ray, work, rows, gate), stopping)) as answers:
                    _receive(answers, set(range(len(rows))), deliver, lambda: ray.get(gate.close.remote()))
            except ray.exceptions.RayError as error:
                raise _gave_up(error) from error
            finally:  # on an existing connection the workers would otherwise go on
                try:
                    gate.close.remote()
                except (
                    Exception
                ) as error:  # Ray is gone, and its workers too; the error that ended the job matters more
                    _log.info("the gate cannot be closed: %s", error)

    def _stream(self, ray: Any, work: Work, rows: list[Row], gate: Any) -> Any:
        """Return the answers as a dataset that is computed while it is read, in any order."""
        pieces = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
        context = pieces.context
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = False
        context.target_max_block_size = 1  # each answer is a block of its own, so it arrives at once
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
                "gate": _GateClient(gate),
                "threads": self._ray.cpus_per_worker,
                "decode": self._decode,
            },
        )


class _GateClient:
    """The gate for workers: `begin` waits for the answer of the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, number: int) -> int:
        import ray

        tries: int = ray.get(self._actor.begin.remote(number))
        return tries

    def end(self, number: int) -> None:
        self._actor.end.remote(number)


def _receive(answers: Iterator[Row | None], missing: set[int], deliver: Deliver, close: Callable[[], set[int]]) -> None:
    """Deliver each batch once. After None, which says that the job shall stop, only batches that had started."""
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
    """Yield the rows of a dataset. Yield None once when `stopping` turns True.

    The rows are read in a thread, so that a stop is noticed while no row comes.

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
    has_stopped, last_answer = False, time.monotonic()
    try:
        while True:
            if not has_stopped and stopping():
                has_stopped = True
                yield None
            try:
                item = waiting.get(timeout=POLL)
            except queue.Empty:
                if time.monotonic() - last_answer > QUIET:
                    _log.warning(
                        "no answer from any worker for %.0f seconds; `ray status` shows what Ray waits for", QUIET
                    )
                    last_answer = time.monotonic()
                continue
            if item is None:
                return
            if isinstance(item, Exception):
                raise _gave_up(item) from item
            last_answer = time.monotonic()
            yield item
    finally:
        closed.set()
        reader.join(GRACE)  # if Ray ended first, the thread would report an error and start another Ray


def _gave_up(error: Exception) -> EngineError:
    """Return an `EngineError` with the last line of Ray's message, which holds the whole traceback of the worker."""
    _log.info("Ray gave up", exc_info=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return EngineError(
        f"Ray gave up the job ({type(error).__name__}: {lines[-1][:300]}); finished images are kept; run the same "
        "command again to go on"
    )
