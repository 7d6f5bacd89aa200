"""What can go wrong while a user's program is recorded, said in one line that names the cause."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

__all__ = ["CaptureError", "explained"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class CaptureError(ValueError):
    """The user's program cannot be captured; the message names its line and what to do."""


@contextmanager
def explained(doing: str, paths: Mapping[int, str] | None = None) -> Iterator[None]:
    """Exceptions of the user's program, with the line they come from; `doing` says what was under way.

    Args:
        paths: of modules, by their `id`: the innermost one that ran is named too.
    """
    try:
        yield
    except CaptureError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        operator = str(getattr(error, "func", error)).removeprefix("aten.").split(".")[0]
        look = {"_local_scalar_dense": "a tensor's value (.item(), bool() or a comparison)"}.get(
            operator, f"values that decide a shape ({operator})"
        )
        raise CaptureError(
            f"{_where(error.__traceback__)}{doing} looks at {look}, which depends on weights or data and does not "
            "exist under fake tensors. Pass real=True to compute it with the example inputs on the CPU"
        ) from error
    except UnsupportedOperatorException as error:
        raise CaptureError(
            f"{_where(error.__traceback__)}operator {error.func} has no fake implementation; register one with "
            "torch.library.register_fake"
        ) from error
    except SystemExit as error:
        raise CaptureError(f"{_where(error.__traceback__)}{doing} called sys.exit({error.code!r})") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        module = _module(error.__traceback__, paths or {})
        raise CaptureError(
            f"{_where(error.__traceback__)}{doing} raised {type(error).__name__}{module}: {first}"
        ) from error


def _module(trace: TracebackType | None, paths: Mapping[int, str]) -> str:
    """` in module encoder.layers.0 (Linear)`: the innermost module among the frames."""
    found = ""
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and paths.get(id(owner)):
            found = f" in module {paths[id(owner)]} ({type(owner).__name__})"
        trace = trace.tb_next
    return found


def _where(trace: TracebackType | None) -> str:
    """`file.py:12: ` of the innermost line outside torch and this package, if there is one."""
    found = ""
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((_TORCH, _OWN)):
            found = f"{os.path.relpath(path) if path.startswith(os.getcwd()) else path}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return found
