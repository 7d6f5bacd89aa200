"""A user's own function, named on the command line: `mypackage.train:make_step` or `path/to/train.py:make_step`.

Its module is imported and so run, as `python -m` or pytest would: name only code you would run yourself.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["load_function", "names_function"]

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def names_function(text: str) -> bool:
    """Whether `text` is written as MODULE:FUNCTION or FILE.py:FUNCTION."""
    module, colon, function = text.rpartition(":")
    return bool(colon) and function.isidentifier() and (module.endswith(".py") or bool(_MODULE.fullmatch(module)))


def load_function(text: str) -> Callable[[], Any]:
    """Import the module and return the function.

    Raises:
        ValueError: no such file, module or function, or the module raises as it is imported.
    """
    where, _, name = text.rpartition(":")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    function = getattr(module, name, None)
    if function is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, 3) or sorted(known)[:5]
        raise ValueError(f"{where} has no function {name!r}; it has: {', '.join(near) or 'none'}")
    if hasattr(function, "named_parameters") and not isinstance(function, type):
        raise ValueError(
            f"{text}: {name} is a module; name a function that returns it with its inputs: (module, inputs)"
        )
    if not callable(function):
        raise ValueError(f"{text}: {name} is a {type(function).__name__}, not a function")
    found: Callable[[], Any] = function
    return found


def _from_name(name: str) -> ModuleType:
    _on_path(Path.cwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(f"no module named {name!r} here or among the installed packages") from error
        raise _raised(name, error) from error
    except Exception as error:
        raise _raised(name, error) from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    _on_path(path.resolve().parent)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules.setdefault(path.stem, module)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise _raised(str(path), error) from error
    return module


def _raised(name: str, error: Exception) -> ValueError:
    first = (str(error).strip().splitlines() or [""])[0]
    install = "; install it: pip install 'peakline[torch]'" if getattr(error, "name", None) == "torch" else ""
    return ValueError(f"importing {name} raised {type(error).__name__}: {first}{install}")


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
