"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

__all__ = ["check_target", "written_whole"]


def check_target(path: str | PathLike[str]) -> None:
    """Refuse a file that cannot be written, before anything is computed for it.

    Raises:
        ValueError: naming the file and what is wrong with its place.
    """
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"{target}: is a folder; give the name of a file")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {str(target.parent)!r}")
    try:
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise ValueError(f"{target}: cannot be written there: {error.strerror}") from None


@contextmanager
def written_whole(path: str | PathLike[str]) -> Iterator[Path]:
    """A temporary file to write to; on success it replaces `path`, on failure nothing is left of it.

    Raises:
        ValueError: as `check_target`.
        OSError: the file system refuses.
    """
    check_target(path)
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
