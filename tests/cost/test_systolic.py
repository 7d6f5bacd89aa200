"""Systolic arrays against SCALE-Sim, the cycle-accurate simulator, on a grid of shapes."""

import csv
from itertools import product
from pathlib import Path

import pytest

from peakline.cost.systolic import edge_traffic, folds, overlapped_cycles, serial_cycles

DATAFLOW = {"ws": "weight stationary", "os": "output stationary", "is": "input stationary"}
with (Path(__file__).parent / "data" / "scalesim.csv").open() as lines:
    ROWS = [
        {name: DATAFLOW.get(value) or int(value) for name, value in row.items()}
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    ]


def mapping(row):
    return row["m"], row["n"], row["k"], row["rows"], row["columns"], row["dataflow"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, mapping(row))))
def test_cycles_without_a_second_set_of_registers_are_scale_sims(row):
    assert serial_cycles(*mapping(row)) == row["cycles"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, mapping(row))))
def test_reads_at_the_edges_of_the_array_are_scale_sims(row):
    found = edge_traffic(*mapping(row))
    assert (found.inputs, found.weights) == (row["sram_input_reads"], row["sram_weight_reads"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, mapping(row))))
def test_results_leave_once_per_fold_of_k(row):
    """SCALE-Sim pads what an output-stationary array writes by its skew; the others agree to the element."""
    results = edge_traffic(*mapping(row)).results
    if row["dataflow"] == "output stationary":
        assert results == row["m"] * row["n"] <= row["sram_output_writes"]
    else:
        assert results == row["sram_output_writes"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, mapping(row))))
def test_loading_behind_the_stream_is_never_slower_and_never_beats_the_peak(row):
    m, n, k, rows, columns, dataflow = mapping(row)
    overlapped = overlapped_cycles(m, n, k, rows, columns, dataflow)
    drain = rows if dataflow == "output stationary" else 0  # SCALE-Sim lets accumulated results leave in no time
    assert m * n * k / (rows * columns) <= overlapped <= serial_cycles(m, n, k, rows, columns, dataflow) + drain + 2


def pulses(m, n, k, rows, columns):
    """A weight-stationary array followed register by register: cycles until the last result has left."""
    cycles = 0
    for _fold in product(range(0, k, rows), range(0, n, columns)):
        cycles += rows  # the weights shift in, a row per cycle
        # row i of the inputs enters row r of the array r cycles late, and moves a column per cycle
        cycles += 1 + max(i + r + c for i, r, c in product(range(m), range(rows), range(columns)))
    return cycles


@pytest.mark.parametrize(("m", "n", "k", "rows", "columns"), [(5, 7, 6, 4, 3), (1, 3, 9, 2, 2), (8, 4, 4, 4, 4)])
def test_a_fold_lasts_until_the_last_skewed_row_leaves(m, n, k, rows, columns):
    assert serial_cycles(m, n, k, rows, columns, "weight stationary") == pulses(m, n, k, rows, columns)


def test_more_arrays_than_folds_cut_the_stream():
    one = overlapped_cycles(4096.0, 128.0, 128.0, 128, 128, "weight stationary", arrays=1)
    four = overlapped_cycles(4096.0, 128.0, 128.0, 128, 128, "weight stationary", arrays=4)
    assert four - 256 == (one - 256) / 4


def test_a_512_cube_on_128_by_128_takes_sixteen_folds():
    assert folds(512, 512, 512, 128, 128, "weight stationary") == (16, 512)
    assert serial_cycles(512, 512, 512, 128, 128, "weight stationary") == 14_304
