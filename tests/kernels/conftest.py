"""One measurement of the whole suite, in a child process: this one's Triton, if it has any, stays as it is."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from peakline.kernels import traffic_table


@pytest.fixture(scope="session")
def table() -> list[dict[str, Any]]:
    """Every kernel, shape and tile of the suite in float32, measured under Triton's interpreter."""
    if find_spec("torch") is None or find_spec("triton") is None:
        pytest.skip("the kernels need torch and Triton")
    return traffic_table()
