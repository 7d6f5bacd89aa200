"""Files of the user's: read with one refusal for all that may be wrong with them, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["check_target", "json_of", "text_of", "written_whole"]


def text_of(path: str | PathLike[str], accepted: str, *, most_bytes: int | None = None) -> str:
    """The text of a file.

    Raises:
        ValueError: no such file, one that cannot be read, is larger than `most_bytes`, or is not text in UTF-8; naming
            the file, what is wrong with it, and what is accepted.
    """
    file = Path(path)
    try:
        if most_bytes is not None and file.stat().st_size > most_bytes:
            raise ValueError(f"{file}: is larger than {most_bytes:,} bytes; accepted: {accepted}")
        return file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror or error}; accepted: {accepted}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not text in UTF-8; accepted: {accepted}") from None


def json_of(path: str | PathLike[str], text: str, accepted: str) -> Any:
    """The values in the text of a JSON file.

    Raises:
        ValueError: it is not JSON, or was cut short; naming the file, the place, and what is accepted.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{Path(path)}: is not a whole JSON file ({error}); accepted: {accepted}") from None


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
