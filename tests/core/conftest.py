"""Plain kernels for the comparisons with PyTorch: oneDNN's reordered copies are the CPU's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def plain_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matrix products without oneDNN, in modules that run PyTorch."""
    torch = sys.modules.get("torch")
    if torch is None or "torch" not in request.module.__name__:
        yield
        return
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)
