"""The comparisons with PyTorch run on a CPU: what is the CPU's alone, or CUDA's alone, is put aside here."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from peakline.models.operators.registry import OperatorType
from peakline.models.operators.softmax import SoftmaxBackward


@pytest.fixture(autouse=True)
def plain_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In modules that run PyTorch: no oneDNN, which reorders operands into copies, no product for softmax's gradient.

    The product is CUDA's (`softmax_backward_cuda_out`, aten/src/ATen/native/cuda/SoftMax.cu).
    """
    torch = sys.modules.get("torch")
    if torch is None or "torch" not in request.module.__name__:
        yield
        return
    monkeypatch.setattr(SoftmaxBackward, "workspace", OperatorType.workspace)
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)
