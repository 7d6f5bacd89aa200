"""Where tensors go and how they get back: pinned host memory by asynchronous copies, files by a thread of their own.

A *ticket* is a copy on its way; `wait` returns when it is there. Neither pickles anything: a file holds a tensor's
storage byte by byte.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Files", "HostMemory", "Store", "Stored", "Ticket", "checked_folder", "storage_bytes"]


class Ticket(Protocol):
    """A copy on its way."""

    def wait(self) -> None:
        """Return when the copy is done (on CUDA: when the current stream will find it done)."""


class Stored(Protocol):
    """Bytes that lie in a store."""

    ticket: Ticket

    def fetch(self) -> tuple[torch.Tensor, Ticket]:
        """A new tensor of bytes on the device, and the copy that fills it."""

    def into(self, target: torch.Tensor) -> Ticket:
        """Begin to fill `target`, as many bytes on the device; it must stay until the ticket is waited for."""

    def free(self) -> None:
        """Give the store its room back."""


class Store(Protocol):
    """A tier to put storages into."""

    def put(self, source: torch.Tensor) -> Stored:
        """Begin to copy the storage of `source`; it must stay untouched until the ticket is waited for."""

    def close(self) -> None:
        """Give everything back."""


def storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The whole storage of a tensor as bytes, sharing its memory."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))


# ---- files ----------------------------------------------------------------------------------------------------------
def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made where it is absent.

    Raises:
        ValueError: it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"folder: {str(path)!r} cannot be written to ({error.strerror or error})") from error
    return path


class _Later:
    """A piece of work in the thread."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()


class _InFile:
    """A storage in a file."""

    def __init__(self, files: Files, path: Path, size: int, device: torch.device, ticket: Ticket) -> None:
        self._files, self._path, self._size, self._device, self.ticket = files, path, size, device, ticket

    def fetch(self) -> tuple[torch.Tensor, Ticket]:
        target = torch.empty(self._size, dtype=torch.uint8)
        ticket = self._files.run(_read, self._path, target.data_ptr(), self._size)
        if self._device.type == "cpu":
            return target, ticket
        ticket.wait()
        return target.to(self._device), ticket

    def into(self, target: torch.Tensor) -> Ticket:
        if target.device.type == "cpu":
            return self._files.run(_read, self._path, target.data_ptr(), self._size)
        found, ticket = self.fetch()
        target.copy_(found)
        return ticket

    def free(self) -> None:
        if not self._files.closed:  # then all of them are gone
            self._files.run(_remove, self._path)


class Files:
    """Storages as files in a folder, written and read one after the other by a thread of its own."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Files in a new folder inside of `folder`.

        Raises:
            ValueError: it cannot be written to.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="peakline-", dir=checked_folder(folder)))
        self._thread = ThreadPoolExecutor(1, "peakline-files")
        self.closed = False
        self._count = 0

    def put(self, source: torch.Tensor) -> Stored:
        device = source.device
        source = storage_bytes(source)
        if device.type != "cpu":
            source = source.cpu()
        self._count += 1
        path = self.folder / f"{self._count}.bytes"
        ticket = self.run(_write, path, source.data_ptr(), source.numel())
        if device.type != "cpu":
            ticket.wait()
        return _InFile(self, path, source.numel(), device, ticket)

    def run(self, work: Callable[..., None], *arguments: Any) -> Ticket:
        """Queue some work; addresses among the arguments must stay good until it is waited for."""
        return _Later(self._thread.submit(work, *arguments))

    def close(self) -> None:
        self.closed = True
        self._thread.shutdown()
        for path in self.folder.glob("*.bytes"):
            path.unlink(missing_ok=True)
        self.folder.rmdir()


def _view(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def _write(path: Path, address: int, size: int) -> None:
    with open(path, "wb", buffering=0) as file:
        rest = _view(address, size)
        while rest:
            rest = rest[file.write(rest) or 0 :]


def _read(path: Path, address: int, size: int) -> None:
    with open(path, "rb", buffering=0) as file:
        rest = _view(address, size)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise OSError(f"{path} ended {len(rest)} bytes early")
            rest = rest[count:]


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


# ---- pinned host memory ---------------------------------------------------------------------------------------------
class _Recorded:
    """A copy on a side stream: the current stream waits for its event."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        torch.cuda.current_stream().wait_event(self._event)


class _Done:
    """A copy that is done already."""

    def wait(self) -> None:
        return None


class _InHost:
    """A storage in host memory."""

    def __init__(self, memory: HostMemory, held: torch.Tensor, device: torch.device, ticket: Ticket) -> None:
        self._memory, self._held, self._device, self.ticket = memory, held, device, ticket

    def fetch(self) -> tuple[torch.Tensor, Ticket]:
        if self._device.type == "cpu":
            return self._held.clone(), _Done()
        target = torch.empty(self._held.numel(), dtype=torch.uint8, device=self._device)
        back = self._memory.back
        back.wait_stream(torch.cuda.current_stream())  # the memory may have been somebody else's until just now
        with torch.cuda.stream(back):
            target.copy_(self._held, non_blocking=True)
            event = back.record_event()
        target.record_stream(back)
        return target, _Recorded(event)

    def into(self, target: torch.Tensor) -> Ticket:
        if self._device.type == "cpu":
            target.copy_(self._held)
            return _Done()
        back = self._memory.back
        back.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(back):
            target.copy_(self._held, non_blocking=True)
            event = back.record_event()
        target.record_stream(back)
        return _Recorded(event)

    def free(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)


class HostMemory:
    """Storages in pinned host memory, copied on a side stream per direction (on a CPU: copies in the same memory)."""

    def __init__(self, device: torch.device) -> None:
        """Streams on `device`, where that is a CUDA device."""
        if device.type == "cuda":
            stream: Any = torch.cuda.Stream
            self.out, self.back = stream(device), stream(device)

    def put(self, source: torch.Tensor) -> Stored:
        device = source.device
        source = storage_bytes(source)
        if device.type == "cpu":
            return _InHost(self, source.clone(), device, _Done())
        held = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        self.out.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.out):
            held.copy_(source, non_blocking=True)
            event = self.out.record_event()
        return _InHost(self, held, device, _Recorded(event))

    def close(self) -> None:
        return None
