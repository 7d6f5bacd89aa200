"""A plan in a file is the plan: carried out alike by whoever reads it, and refused if it is not what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from small_models import CASES, loss_of, planned  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import peakline as pk  # noqa: E402

BY_NAME = {case.name: case for case in CASES}
WAYS = [
    ("resnet", 0.65, ("recompute",)),
    ("unet", 0.65, ("recompute", "swap")),
    ("vit", 0.6, ("recompute", "swap", "offload-optimizer")),
]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A plan's file."""
    path = tmp_path / "plan.json"
    path.write_text(planned(BY_NAME["resnet"], 0.65, "recompute").to_json())
    return path


def trained(name: str, plan: Any, folder: Path) -> tuple[list[Tensor], nn.Module]:
    """Three steps: losses, and the module after them."""
    module, inputs, optimizer = BY_NAME[name].build()
    losses = []
    with plan.apply(module, optimizer, folder=folder):
        for _ in range(3):
            loss = loss_of(module(**inputs))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return losses, module


@pytest.mark.parametrize(("name", "share", "allow"), WAYS)
def test_a_plan_read_from_its_file_trains_as_the_plan_itself(
    name: str, share: float, allow: tuple[str, ...], tmp_path: Path
) -> None:
    plan = planned(BY_NAME[name], share, *allow)
    (tmp_path / "plan.json").write_text(plan.to_json())
    saved = pk.read_plan(tmp_path / "plan.json")
    assert (saved.seconds, saved.peak, saved.budget) == (plan.seconds, plan.peak, plan.budget)
    losses, module = trained(name, plan, tmp_path)
    again, other = trained(name, saved, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    state = other.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["resnet", "unet", "vit"])
def test_its_instructions_are_those_of_the_plan(name: str) -> None:
    from peakline.execution.saved import _script, instructions
    from peakline.execution.script import script_of

    share, allow = next((share, allow) for other, share, allow in WAYS if other == name)
    script = script_of(planned(BY_NAME[name], share, *allow))
    assert _script(json.loads(json.dumps(instructions(script)))) == script


# ---- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_file_that_was_cut_short_is_refused(written: Path, part: float) -> None:
    text = written.read_text()
    written.write_text(text[: int(part * len(text))])
    with pytest.raises(ValueError, match=r"plan\.json: is not a whole JSON file"):
        pk.read_plan(written)


@pytest.mark.parametrize("field", ["seconds", "peak_bytes", "recompute", "execution"])
def test_a_file_that_was_edited_is_refused(written: Path, field: str) -> None:
    data = json.loads(written.read_text())
    data[field] = None
    written.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="was changed since it was written"):
        pk.read_plan(written)


def test_other_spaces_and_another_order_of_keys_change_nothing(written: Path) -> None:
    data = json.loads(written.read_text())
    written.write_text(json.dumps(dict(reversed(data.items())), indent=2))
    assert pk.read_plan(written).data == data


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("peakline.offload/2", "another version of peakline"),
        ("peakline.place/1", r"accepted: 'peakline\.offload/1'$"),
        (None, "schema is None"),
    ],
)
def test_a_file_of_another_schema_or_version_is_refused(written: Path, schema: str | None, words: str) -> None:
    written.write_text(json.dumps({**json.loads(written.read_text()), "schema": schema}))
    with pytest.raises(ValueError, match=words):
        pk.read_plan(written)


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(ValueError, match=r"plan\.json: cannot be read: No such file"):
        pk.read_plan(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"is not text in UTF-8; accepted: what peakline plan --out writes"):
        pk.read_plan(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="schema is None"):
        pk.read_plan(path)
    path.write_text(json.dumps({"schema": "peakline.offload/1", "fits": False, "floor_bytes": 1}))
    with pytest.raises(ValueError, match="nothing fits"):
        pk.read_plan(path)


def test_a_module_that_changed_since_is_refused_naming_the_difference(written: Path) -> None:
    saved = pk.read_plan(written)
    module, inputs, _ = BY_NAME["resnet"].build()
    module.stem[2] = nn.Tanh()
    with saved.apply(module), pytest.raises(ValueError, match=r"next operator is .*relu.*, the module runs aten\.tanh"):
        module(**inputs)
    module.head[1] = nn.Linear(32, 11)
    with pytest.raises(ValueError, match=r"head\.1\.weight has shape \(11, 32\), in the plan \(10, 32\)"):
        saved.apply(module)


def test_the_plan_of_a_built_in_model_cannot_be_carried_out(tmp_path: Path) -> None:
    step = pk.training_step("gpt2", batch=1, seq=128, dtype="bf16")
    (tmp_path / "plan.json").write_text(pk.plan(step, "a100-80gb", allow=["recompute"]).to_json())
    with pytest.raises(ValueError, match="the plan of the built-in graph 'gpt2'"):
        pk.read_plan(tmp_path / "plan.json").apply(nn.Linear(2, 2))
