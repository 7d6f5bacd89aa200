"""How long Python holds on to what a captured forward pass makes: arguments live until the call returns.

`torch.nn.Module.__call__` passes its arguments on in a tuple, which lives until `forward` is done: what a module is
given is there until the last operator in it has run, whoever used it last. A tensor that was made outside of a module
and is read inside of it was given to it. (Variables of a `forward` of its own are not known here; they end with it.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peakline.memory.lifetimes import Step
from peakline.models.flatten import instance_name

__all__ = ["held_until"]


def held_until(steps: Sequence[Step], births: Sequence[int], touches: Mapping[int, list[int]], turn: int) -> list[int]:
    """The last step before `turn` during which each storage is an argument of a running module; −1 where it is none.

    Args:
        births: step that makes each storage.
        touches: steps that touch it, in order.
        turn: number of steps of the forward pass.
    """
    paths = [_path(step) for step in steps[:turn]]
    found = []
    for key, birth in enumerate(births):
        last = -1
        if 0 <= birth < turn:
            for i in touches.get(key, ()):
                if i >= turn:
                    break
                if i > birth and i > last:
                    last = max(last, _returns(paths, birth, i))
        found.append(last)
    return found


def _path(step: Step) -> tuple[str, ...]:
    module, family = step.operator.module, step.block.family
    return tuple(part for part in (instance_name(module, family, step.layer) if family else module).split(".") if part)


def _returns(paths: list[tuple[str, ...]], maker: int, reader: int) -> int:
    """Last step of the outermost module that the reader entered after the maker ran; −1 if it entered none."""
    common = 0
    for one, other in zip(paths[maker], paths[reader]):
        if one != other:
            break
        common += 1
    if len(paths[reader]) == common:
        return -1
    entered = paths[reader][: common + 1]
    while reader + 1 < len(paths) and paths[reader + 1][: common + 1] == entered:
        reader += 1
    return reader
