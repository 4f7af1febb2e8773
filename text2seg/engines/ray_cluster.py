"""A connection to Ray: a cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from text2seg.errors import EngineError, SettingsError
from text2seg.label_config import RaySettings

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
