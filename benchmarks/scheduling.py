"""Order and traffic on models and irregular cells: writes the results table of docs/scheduling.md.

    python benchmarks/scheduling.py [--group models|wired|cells] [--time-limit 20] [--cells FOLDER] [--write]

Each problem is solved at the largest working set M_R, halfway, and at the smallest peak M_P; every plan is replayed.
The group wired are random stages (`random_wiring.py`), the group cells SwiftNet (`swiftnet.py`) and the cells in the
folder that `--cells` names, as JSON (`{"name", "ops": [{"id", "kind", "bytes", "inputs"}]}`). `--write` replaces the
group's table between its markers in the documentation.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from cosma_networks import without_parameters
from random_wiring import stage
from swiftnet import cell, swiftnet

import peakline as pk
from peakline.scheduling import part_of, problem_of
from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.order import smallest_peak
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule

PAGE = Path(__file__).parents[1] / "docs" / "scheduling.md"
HEAD = (
    "| problem | operators | capacity | non-compulsory | bound | gap | seconds |\n|---|---:|---:|---:|---:|---:|---:|\n"
)


def models() -> Iterator[tuple[str, Problem]]:
    """Problems from the catalogue; activations alone where it says so, else with parameters."""
    for layers in (1, 2):
        step = pk.training_step("bert-base-uncased", batch=8, seq=128, optimizer="none", overrides={"layers": layers})
        body = part_of(problem_of(step, scope="activations"), "bert.encoder.layer.")
        yield f"BERT, {layers} layer{'s' * (layers > 1)}, training, activations", body
    yield "Inception-v3, activations", problem_of(pk.inference("inception-v3"), scope="activations")
    yield "MobileNetV2", problem_of(pk.inference("mobilenet-v2"))
    yield "ResNet-50", problem_of(pk.inference("resnet-50"))
    yield "BERT-base, inference", problem_of(pk.inference("bert-base-uncased", seq=128))
    yield "BERT-base, training", problem_of(pk.training_step("bert-base-uncased", seq=128, optimizer="none"))


def cells(folder: Path | None) -> Iterator[tuple[str, Problem]]:
    """SwiftNet, parameters streaming past; irregular cells from files, every result of which is an activation."""
    for name in "ABC":
        yield f"SwiftNet, cell {name}", without_parameters(cell(name))
    yield "SwiftNet", without_parameters(swiftnet())
    yield "SwiftNet, with parameters", swiftnet()
    for path in sorted(folder.glob("*.json")) if folder else ():
        data = json.loads(path.read_text(encoding="utf-8"))
        tensors = tuple(Tensor(str(op["id"]), op["bytes"]) for op in data["ops"])
        operators = tuple(
            Operator(f"{op['kind']}{op['id']}", tuple(dict.fromkeys(map(str, op["inputs"]))), (str(op["id"]),))
            for op in data["ops"]
        )
        yield _title(data["name"]), Problem(tensors, operators)


def _title(name: str) -> str:
    """`darts_cifar_s6_f36` in words: 6 normal cells a stage; other names as they are."""
    found = re.fullmatch(r"(amoebanet|darts)_(cifar|imagenet)_s(\d+)_f\d+", name)
    if found is None:
        return name
    network, data, cells = found.groups()
    written = {"amoebanet": "AmoebaNet", "darts": "DARTS", "cifar": "CIFAR", "imagenet": "ImageNet"}
    return f"{written[network]}, {written[data]}, {cells} normal cell{'s' * (cells != '1')} a stage"


def wired() -> Iterator[tuple[str, Problem]]:
    """Stages of RandWire, parameters streaming past."""
    for nodes, seed in ((12, 1), (20, 0), (20, 1), (32, 0), (32, 1), (32, 2), (40, 0)):
        yield f"RandWire stage, {nodes} nodes, seed {seed}", without_parameters(stage(nodes, seed))


def rows(name: str, problem: Problem, time_limit: float) -> Iterator[str]:
    """The table's rows of one problem."""
    dag = Dag.of(problem)
    order = smallest_peak(dag, time_limit=time_limit)
    least = largest_working_set(dag)[0]
    points = {"M_P": order.peak, "halfway": (least + order.peak) // 2, "M_R": least}
    if least == order.peak:
        points = {"M_R = M_P": least}
    for label, capacity in points.items():
        plan = schedule(problem, capacity, time_limit=time_limit)
        moved, proof = replay(problem, plan).non_compulsory, plan.certificate
        yield (
            f"| {name} | {len(dag)} | {capacity:,} ({label}) | {moved:,} | {proof.lower_bound:,} | "
            f"{proof.gap:.1%} | {proof.seconds:.1f} |"
        )


def main() -> None:
    """Solve and print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=20.0)
    parser.add_argument("--group", choices=("models", "wired", "cells"), default="models")
    parser.add_argument("--cells", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = []
    listed = {"models": models, "wired": wired, "cells": lambda: cells(given.cells)}[given.group]()
    for name, problem in listed:
        for row in rows(name, problem, given.time_limit):
            print(row, flush=True)
            found.append(row)
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        mark = "results" if given.group == "models" else given.group
        table = f"<!-- {mark} -->\n{HEAD}" + "\n".join(found) + f"\n<!-- end of {mark} -->"
        pattern = f"<!-- {mark} -->.*?<!-- end of {mark} -->"
        PAGE.write_text(re.sub(pattern, lambda _: table, text, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
