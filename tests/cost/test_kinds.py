"""What holds on every kind of device: more of anything never hurts, twice the work at most twice the time, units agree.

Steps are excepted where shapes meet counts (waves of blocks, pipelines that hold fewer tiles, a cache that operands
outgrow), and then the result says so: what is lost stands under `latency`, or under main memory.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_price import attention, gemm

import peakline as pk
from peakline.cost.machine import Machine, machine
from peakline.cost.price import KernelCost, price
from peakline.cost.program import ProgramCost
from peakline.hardware import device, devices
from peakline.models.dtypes import dtype, nbytes
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Kernel, Scan, Stream

KINDS = ("gpu", "npu", "pim", "fpga", "mcu", "cpu")
BY_KIND = {kind: [name for name in devices() if device(name).kind == kind] for kind in KINDS}
HAIR = 1 + 1e-9

Work = tuple[Kernel, int, int]


def can_price(name: str) -> bool:
    try:
        price(*gemm(1, 8, 8, 8, dtype("int8")), device(name))
    except ValueError:
        return False
    return True


PRICED = {kind: [name for name in names if can_price(name)] for kind, names in BY_KIND.items()}
names = st.sampled_from(KINDS).flatmap(lambda kind: st.sampled_from(PRICED[kind]))
others = st.sampled_from(KINDS[1:]).flatmap(lambda kind: st.sampled_from(PRICED[kind]))
gpus = st.sampled_from(PRICED["gpu"])
factors = st.sampled_from([1.1, 1.5, 2.0, 4.0, 8.0])
sizes = st.floats(0, 12).map(lambda x: int(2**x))
few = st.integers(1, 32)


def costs(work: Work, target: Machine) -> KernelCost:
    """The price; formats that a device computes in none wide enough for are not its work."""
    try:
        return price(*work, target)
    except ValueError:
        assume(False)
        raise


@st.composite
def works(draw) -> Work:
    """Any kernel of any format, with honest compulsory bytes."""
    kind = dtype(draw(st.sampled_from(["bf16", "int8", "fp32"])))
    shape = draw(st.sampled_from(["gemm", "attention", "backward", "stream", "rows", "grouped", "convolution", "scan"]))
    m, n, k, b = draw(sizes), draw(sizes), draw(sizes), draw(few)
    if shape == "gemm":
        return gemm(b, m, n, k, kind)
    if shape in ("attention", "backward"):
        queries = 1 if draw(st.booleans()) and shape == "attention" else m
        kernel, reads, writes = attention(b, draw(few), draw(st.sampled_from([1, 4])), queries, m, 128, kind)
        if shape == "backward":
            return replace(kernel, backward=True), 2 * reads + writes, reads
        return kernel, reads, writes
    if shape == "stream":
        return Stream(draw(few) * m * n, kind), nbytes(2 * m * n, kind), nbytes(m * n, kind)
    if shape == "rows":
        walk = Stream(8 * m * n, kind, 1, rows=m, passes=draw(st.integers(1, 3)), threads=128, steps=-(-n // 512))
        return walk, nbytes(m * n, kind), nbytes(m * n, kind)
    if shape == "grouped":
        kernel = GroupedGemm(b, b * m, n, k, kind, kind, kind)
        return kernel, nbytes(b * m * k + b * n * k, kind), nbytes(b * m * n, kind)
    if shape == "convolution":
        side, taps, groups = draw(st.integers(1, 56)), draw(st.sampled_from([1, 9])), draw(st.sampled_from([1, 8]))
        cin, cout = 8 * draw(few), 8 * draw(few)
        kernel = Convolution(b, cin, cout, groups, taps, side**2, side**2, kind, kind, kind, draw(st.booleans()))
        weights = taps * cin * cout // groups
        return kernel, nbytes(b * side**2 * cin + weights, kind), nbytes(b * side**2 * cout, kind)
    return Scan(b, m, 64 * draw(few), 16, kind), nbytes(2 * b * m * n, kind), nbytes(b * m * n, kind)


# --- more of one thing ------------------------------------------------------------------------------------------


def scaled(rates, factor: float):
    return {name: rate * factor for name, rate in rates.items()}


def with_levels(target: Machine, *, bandwidth: float = 1.0, capacity: float = 1.0) -> Machine:
    """Every level's bandwidth, and every level's capacity but main memory's, so many times as large."""
    levels = tuple(
        replace(
            level,
            bandwidth=level.bandwidth and level.bandwidth * bandwidth,
            capacity=level.capacity and level.capacity * (capacity if level is not target.main else 1.0),
        )
        for level in target.levels
    )
    return replace(target, levels=levels, shared=target.shared * capacity)


def more_bandwidth(target: Machine, factor: float) -> Machine:
    banks = target.banks
    if banks is not None:
        banks = replace(banks, inside=banks.inside * factor, outside=banks.outside * factor)
    return replace(with_levels(target, bandwidth=factor), banks=banks)


def more_compute(target: Machine, factor: float) -> Machine:
    return replace(target, matrix=scaled(target.matrix, factor), vector=scaled(target.vector, factor))


def more_capacity(target: Machine, factor: float) -> Machine:
    return with_levels(target, capacity=factor)


def more_cores(target: Machine, factor: float) -> Machine:
    """Whole copies of every unit, with its private memory; the levels that units share stay as they are."""
    times = max(int(factor), 2)
    levels = tuple(
        replace(level, capacity=level.capacity and level.capacity * times,
                bandwidth=level.bandwidth and level.bandwidth * times) if level.private else level
        for level in target.levels
    )  # fmt: skip
    banks, array = target.banks, target.array
    return replace(
        more_compute(target, times),
        units=target.units * times,
        levels=levels,
        array=array and (array[0], array[1], array[2] * times),
        banks=banks and replace(banks, units=banks.units * times, inside=banks.inside * times),
    )


MORE = {"bandwidth": more_bandwidth, "compute": more_compute, "capacity": more_capacity, "cores": more_cores}


def lost(before: KernelCost, after: KernelCost, resource: str, times: float = 1.0) -> float:
    """Seconds that a resource is said to need beyond so many times what it needed before."""
    return max(float(after.limits.get(resource, 0.0)) - times * float(before.limits.get(resource, 0.0)), 0.0)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(others, works(), factors, st.sampled_from(sorted(MORE)))
def test_more_of_anything_never_slows_an_npu_pim_fpga_mcu_or_cpu(name, work, factor, what):
    slow = machine(device(name))
    before, after = costs(work, slow), costs(work, MORE[what](slow, factor))
    assert after.bound <= before.bound * HAIR
    assert after.io <= before.io * HAIR
    assert after.tiled <= before.tiled * HAIR


@settings(max_examples=300, deadline=None, derandomize=True)
@given(gpus, works(), factors, st.sampled_from(sorted(MORE)))
def test_more_of_anything_never_slows_a_gpu_but_for_steps_which_are_reported(name, work, factor, what):
    """More units may split a product or a long cache once more (latency, and one launch more), and larger shared memory
    hold more and shallower tiles (which fetch more out of the cache): choices a library makes by rule. Bandwidth and
    arithmetic know no steps."""
    slow = machine(device(name))
    before, after = costs(work, slow), costs(work, MORE[what](slow, factor))
    assert after.bound <= before.bound * HAIR
    assert after.io <= before.io * HAIR
    steps = after.limits if what in ("capacity", "cores") else ()
    step = sum(lost(before, after, resource) for resource in steps)
    assert after.tiled <= before.tiled * HAIR + step


@settings(max_examples=200, deadline=None, derandomize=True)
@given(names, works(), factors)
def test_more_memory_on_chip_never_raises_the_bytes_that_must_move(name, work, factor):
    small = machine(device(name))
    before, after = costs(work, small), costs(work, more_capacity(small, factor))
    for level, least in before.io_lower_bound.items():
        assert after.io_lower_bound[level] <= least * HAIR


# --- twice the work, twice the rates ----------------------------------------------------------------------------


def doubled(work: Work) -> Work:
    kernel, reads, writes = work
    return replace(kernel, batch=2 * kernel.batch), 2 * reads, 2 * writes  # type: ignore[call-arg, union-attr]


batched = works().filter(lambda work: isinstance(work[0], Gemm | Attention | Convolution | Scan))


def held(target: Machine) -> float:
    """Seconds in which the memories' contents move twice: bounds on traffic take so much off for what may lie there,
    once however large the batch is, so that the smaller batch's may be that much looser."""
    seconds = 2.0 * target.onchip_bytes / target.supply
    if target.cache is not None and target.cache.bandwidth:
        seconds += 2.0 * target.private_bytes * target.units / target.cache.bandwidth
    return seconds


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(["npu", "pim", "fpga", "mcu"]).flatmap(lambda k: st.sampled_from(PRICED[k])), batched)
def test_twice_the_batch_takes_at_most_twice_the_time(name, work):
    target = machine(device(name))
    once, twice = costs(work, target), costs(doubled(work), target)
    assert twice.bound <= 2 * once.bound * HAIR
    assert twice.io <= 2 * once.io * HAIR + held(target)
    assert twice.tiled <= 2 * once.tiled * HAIR + (held(target) if twice.tiled <= twice.io * HAIR else 0.0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(["gpu", "cpu"]).flatmap(lambda k: st.sampled_from(PRICED[k])), batched)
def test_and_so_on_gpus_and_cpus_but_for_steps_which_are_reported(name, work):
    """On a GPU: half a wave becomes a wave (latency), or operands outgrow the cache that held them (main memory).
    A convolution may then take the other kernel (compute). On a CPU what filled part of the cores takes a second round
    of them (compute), and a second row makes a matrix of a vector, whose operands are packed (latency).
    """
    target = machine(device(name))
    once, twice = costs(work, target), costs(doubled(work), target)
    assert twice.bound <= 2 * once.bound * HAIR
    assert twice.io <= 2 * once.io * HAIR
    steps = sum(lost(once, twice, resource, 2.0) for resource in twice.limits)
    assert twice.tiled <= 2 * once.tiled * HAIR + steps


def faster(target: Machine, factor: float) -> Machine:
    """Every rate, the clock's too, so many times as fast; nothing to launch."""
    quick = more_compute(more_bandwidth(target, factor), factor)
    banks = quick.banks and replace(quick.banks, window=quick.banks.window / factor, row=0.0)
    return replace(quick, clock=target.clock * factor, launch=None, banks=banks)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(others, works())
def test_a_device_twice_as_fast_in_every_rate_takes_half_the_time(name, work):
    """Banks without rows to open: opening one takes its nanoseconds at any rate. GPUs keep a fixed part of a launch,
    which `test_price` allows for."""
    slow = faster(machine(device(name)), 1.0)
    before, after = costs(work, slow), costs(work, faster(slow, 2.0))
    assert after.bound == pytest.approx(before.bound / 2)
    assert after.io == pytest.approx(before.io / 2)
    assert after.tiled == pytest.approx(before.tiled / 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(gpus, works())
def test_bound_and_io_of_a_gpu_halve_too(name, work):
    slow = machine(device(name))
    before, after = costs(work, slow), costs(work, faster(slow, 2.0))
    assert (after.bound, after.io) == pytest.approx((before.bound / 2, before.io / 2))


# --- units ------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(names, works())
def test_times_are_the_bytes_over_bandwidth_and_operations_over_rate_they_say_they_are(name, work):
    """`limits` in seconds against `traffic` in bytes and rates in bytes/s: one set of units."""
    kernel, reads, writes = work
    target = machine(device(name))
    cost = costs(work, target)
    assert cost.bound * target.supply >= (reads + writes) * (1 - 1e-9)
    assert cost.bound == pytest.approx(max((reads + writes) / target.supply, arithmetic(kernel, target)), rel=1e-9)
    main = target.main.name
    if target.kind in ("npu", "fpga", "cpu"):
        assert cost.limits[main] == pytest.approx(cost.traffic[main] / target.supply)
    assert all(seconds >= 0 for seconds in cost.limits.values())


def arithmetic(kernel: Kernel, target: Machine) -> float:
    """FLOPs over the peak that the datasheet states for the format, written out anew."""
    if isinstance(kernel, Stream | Scan):
        rate = max(target.vector_rate(kernel.kind), target.vector.get(kernel.kind.name, 0.0))
        return float(kernel.flops) / rate
    kind = kernel.kind if isinstance(kernel, Attention) else kernel.a
    if isinstance(kernel, Convolution) and kind.name == "fp32" and target.kind == "gpu" and "tf32" in target.matrix:
        kind = dtype("tf32")
    return float(kernel.flops) / target.rate(kind)[0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(names, st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([2, 4]))
def test_elements_of_twice_the_bytes_over_twice_the_bandwidth_take_the_same_time(name, m, n, times):
    target = machine(device(name))
    kind = dtype("int8")
    narrow = price(Stream(m * n, kind), 2 * m * n, m * n, target)
    wide = price(Stream(m * n, kind), 2 * m * n * times, m * n * times, more_bandwidth(target, times))
    assert (wide.bound, wide.io) == pytest.approx((narrow.bound, narrow.io))


# --- whole steps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in BY_KIND["gpu"] if (c := device(n).calibration) is not None and c.residual])
def test_bound_io_and_tiled_lie_in_order_below_the_top_of_the_measured_interval(name):
    for seq in (128, 2048):
        est = pk.estimate(pk.prefill("llama-3.2-1b", seq=seq), name)
        assert est.time_interval is not None
        low, high = est.time_interval
        assert est.cost.bound <= est.cost.io <= est.cost.tiled <= high
        assert est.cost.bound <= low <= high


@pytest.mark.parametrize(
    ("name", "model", "kind"),
    [("h100-sxm", "llama-3.2-1b", "bf16"), ("tpu-v4", "llama-3.2-1b", "bf16"), ("xeon-8480plus", "gpt2", "fp32"),
     ("hbm-pim", "gpt2", "fp16"), ("alveo-u280", "mobilenet-v2", "int8"), ("stm32h743", "mcunet-in0", "int8")],
)  # fmt: skip
def test_twice_the_batch_of_a_whole_step_takes_at_most_twice_the_time(name, model, kind):
    def cost(batch: int) -> ProgramCost:
        if kind == "int8":
            return pk.estimate(pk.inference(model, batch=batch, dtype=kind), name).cost
        return pk.estimate(pk.prefill(model, batch=batch, seq=256, dtype=kind), name).cost

    for once, twice in pairwise(map(cost, (1, 2, 4, 8))):
        assert once.bound <= twice.bound <= 2 * once.bound * HAIR
        assert once.io <= twice.io <= 2 * once.io * HAIR
        assert once.tiled <= twice.tiled <= 2 * once.tiled * HAIR


@settings(max_examples=60, deadline=None, derandomize=True)
@given(names, st.lists(st.integers(1, 3000), min_size=2, max_size=6), st.integers(1, 512))
def test_every_kind_prices_arrays_element_by_element(name, rows, k):
    kind, target = dtype("int8"), machine(device(name))
    together = price(*gemm(1, np.array(rows), 64, k, kind), target)
    alone = [price(*gemm(1, m, 64, k, kind), target) for m in rows]
    assert [(a, b, c) for a, b, c in zip(together.bound, together.io, together.tiled, strict=True)] == [
        (one.bound, one.io, one.tiled) for one in alone
    ]
