"""One measurement of the whole suite, in a child process: this one's Triton, if it has any, stays as it is."""

from __future__ import annotations

from typing import Any

import pytest

from peakline.kernels import traffic_table


@pytest.fixture(scope="session")
def table() -> list[dict[str, Any]]:
    """Every kernel, shape and tile of the suite in float32, measured under Triton's interpreter."""
    pytest.importorskip("torch", reason="the kernels need torch")
    pytest.importorskip("triton", reason="the kernels need Triton")
    return traffic_table()
