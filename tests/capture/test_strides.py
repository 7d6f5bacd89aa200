"""The layout of elementwise results is the one ATen's kernels choose."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from peakline.models.capture.strides import elementwise_strides  # noqa: E402
from peakline.models.capture.views import view_of  # noqa: E402


@st.composite
def operands(draw: st.DrawFn) -> list[object]:
    """Two or three tensors of one broadcast shape, permuted, sliced and expanded."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        own = [n if draw(st.booleans()) or draw(st.booleans()) else 1 for n in shape]
        order = draw(st.permutations(range(len(shape))))
        inverse = [order.index(d) for d in range(len(shape))]
        tensor = torch.empty([own[d] for d in order]).permute(inverse)
        if draw(st.booleans()):
            tensor = tensor.expand(shape)
        made.append(tensor)
    return made


@settings(max_examples=400, deadline=None)
@given(operands())
def test_a_sum_is_laid_out_as_aten_lays_it_out(tensors: list[object]) -> None:
    result = tensors[0].sin() if len(tensors) == 1 else (
        torch.add(*tensors) if len(tensors) == 2 else torch.addcmul(*tensors)
    )  # fmt: skip
    predicted = elementwise_strides(tuple(result.shape), [view_of(t, 0) for t in tensors])
    differing = [d for d, n in enumerate(result.shape) if n > 1 and result.stride()[d] != predicted[d]]
    assert differing == [], (predicted, result.stride())
