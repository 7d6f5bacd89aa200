"""Products beside memory banks: the closed form against banks that are walked access by access, and where it pays."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.cli import main
from peakline.cost.machine import machine
from peakline.cost.pim import PARTIAL_SUM, ROW_SWITCH, Banks, product_seconds
from peakline.cost.price import price
from peakline.hybrid import crossover, hybrid
from peakline.models.dtypes import dtype
from peakline.models.kernels import Gemm

FP16 = dtype("fp16")


def gemv(m, n, k, device, batch=1):
    moved = 2 * batch * (n * k + m * k), 2 * batch * m * n
    return price(Gemm(batch, m, n, k, FP16, FP16, FP16), *moved, pk.device(device)).tiled


def walked(banks: Banks, m, n, k, element):
    """Seconds of m matrix-vector products, unit by unit, row by row, byte by byte over the pins."""
    total = 0.0
    per_unit = banks.inside / banks.units
    for _ in range(m):
        outputs = [0] * int(banks.units)
        for output in range(n):
            outputs[output % int(banks.units)] += 1
        slowest = 0.0
        for mine in outputs:
            bytes_ = mine * k * element
            opened = bytes_ / banks.row if banks.row else 0
            slowest = max(slowest, bytes_ / per_unit + opened * ROW_SWITCH)
        pieces = math.ceil(k * element / banks.buffer) if banks.buffer else 1
        pins = k * element + n / banks.channels * pieces * PARTIAL_SUM
        total += slowest + pins / (banks.outside / banks.channels)
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 300), st.integers(1, 4096), st.sampled_from(["hbm-pim", "gddr6-aim"]))
def test_the_formula_is_what_walking_the_banks_takes(m, n, k, name):
    found = machine(pk.device(name))
    least = 2 * m * n * k / found.rate("fp16")[0]
    expected = max(walked(found.banks, m, n, k, 2), least)
    assert product_seconds(found, 1.0, float(m), float(n), float(k), FP16) == pytest.approx(expected)


def test_every_input_vector_streams_the_matrix_again():
    assert gemv(8, 4096, 4096, "hbm-pim") == pytest.approx(8 * gemv(1, 4096, 4096, "hbm-pim"))


def test_a_vector_sees_more_than_the_pins_could_bring():
    """GDDR6-AiM: 16 times the pins' bandwidth inside; rows, broadcasts and partial sums cost a third of it."""
    pins = 2 * 4096 * 4096 / pk.device("gddr6-aim").main.bandwidth
    assert 8 < pins / gemv(1, 4096, 4096, "gddr6-aim") < 16


def test_a_matrix_of_fewer_outputs_than_units_leaves_units_idle():
    narrow, wide = gemv(1, 1, 8192, "hbm-pim"), gemv(1, 128, 8192, "hbm-pim")
    assert wide < 1.2 * narrow


def test_above_the_crossover_the_processor_is_faster_and_below_it_the_banks():
    rows = crossover("t4", "gddr6-aim", 4096, 4096, count=8)
    assert rows > 1
    assert crossover("a100-80gb", "gddr6-aim", 4096, 4096, count=8) <= rows  # a processor with faster memory


def test_one_sequence_sends_its_products_to_the_banks_and_a_batch_only_its_attention():
    one, many = (
        hybrid(pk.decode("llama-2-7b", batch=b, context=2048, dtype="fp16"), "a100-80gb", "hbm-pim", count=5)
        for b in (1, 64)
    )
    sent = {s.operator.rsplit(".", 1)[-1] for s in one.shares if s.goes_to_banks}
    assert {"linear", "flash"} <= sent
    assert {s.operator.rsplit(".", 1)[-1] for s in many.shares if s.goes_to_banks} == {"flash"}
    assert many.in_turn < many.host_only


def test_grouped_heads_have_too_many_operations_per_byte_for_the_banks():
    """Four to eight queries share each key (Duplex, arXiv:2409.01141): on the processor it is read once for all."""
    graph = pk.decode("llama-3.1-8b", batch=64, context=8192, dtype="fp16")
    split = hybrid(graph, "a100-80gb", "hbm-pim", count=5)
    assert not any(s.goes_to_banks for s in split.shares if "attention" in s.operator)


@given(st.integers(1, 64))
@settings(max_examples=10, deadline=None)
def test_each_operator_where_it_takes_less_never_takes_longer_than_the_processor_alone(batch):
    split = hybrid(pk.decode("gpt2", batch=batch, context=512, dtype="fp16"), "a100-80gb", "hbm-pim")
    assert split.in_turn <= split.host_only * (1 + 1e-9)
    assert split.overlapped >= 2 * max(split.busy)


def test_no_stack_at_all_is_refused():
    with pytest.raises(ValueError, match="count must be at least 1"):
        hybrid(pk.decode("gpt2", batch=1, context=64, dtype="fp16"), "a100-80gb", "hbm-pim", count=0)


def test_the_command_line_says_what_banks_beside_a_processor_gain(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["estimate", "llama-2-7b", "--device", "a100-80gb", "--decode", "--batch", "64", "--context", "2048"]
    assert main([*words, "--dtype", "fp16", "--pim", "hbm-pimx5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pim"]
    assert found["in_turn"] < found["host_only"]
    assert found["in_turn"] == pytest.approx(sum(found["busy"]))
    assert main([*words, "--dtype", "fp16", "--pim", "hbm-pimx5"]) == 0
    assert "to the banks: core_attention" in capsys.readouterr().out
    assert main([*words, "--dtype", "fp16", "--pim", "h100-sxm"]) == 2
    assert "only memory that computes" in capsys.readouterr().err
