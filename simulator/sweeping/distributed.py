"""Dask as the engine of a sweep: an existing scheduler, workers of the same version, tasks tried again."""

from __future__ import annotations

from concurrent.futures import Executor
from importlib import import_module
from typing import Any

from peakline import __version__

__all__ = ["client_of", "executor_of", "refuse_other_versions"]


def client_of(address: str) -> Any:
    """A client of the scheduler at `address`, e.g. `tcp://host:8786`.

    Raises:
        ValueError: dask is not installed, or no scheduler answers there.
    """
    try:
        client: Any = import_module("dask.distributed").Client
    except ImportError:
        raise ValueError("--dask needs dask: pip install 'peakline[distributed]'") from None
    try:
        return client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ValueError(f"--dask {address}: no scheduler answers there ({type(error).__name__})") from None


def executor_of(client: Any) -> Executor:
    """The client as a `concurrent.futures.Executor`, once its workers are known to run this version.

    Workers that join later are asked by each part they are given (`WorkerVersionError`).

    Raises:
        ValueError: naming both versions, or saying that there is no worker.
    """
    refuse_other_versions(client)
    executor: Executor = client.get_executor(pure=False, retries=3)
    executor.workers = len(client.scheduler_info(n_workers=-1)["workers"])  # type: ignore[attr-defined]
    return executor


def refuse_other_versions(client: Any) -> None:
    """Refuse workers of another version, or without peakline."""
    versions = client.run(worker_version)
    if not versions:
        raise ValueError("dask: the scheduler has no workers; start some with 'dask worker tcp://…'")
    for worker, version in versions.items():
        if version != __version__:
            found = f"runs peakline {version}" if version else "has no peakline"
            raise ValueError(f"dask: worker {worker} {found}, and this is {__version__}; install the same everywhere")


def worker_version() -> str | None:
    """The version of peakline where this runs; None without it."""
    try:
        import peakline
    except ImportError:
        return None
    return peakline.__version__
