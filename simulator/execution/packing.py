"""Storages held in fewer bits: groups of elements with a scale of their own, packed and unpacked piece by piece.

Rounding is to the nearest: an element comes back within `Codec.error` of its group's range (int8, int4) or of its
group's largest magnitude (fp8), and is then rounded to its own format. Formats and their sources:
`peakline.planning.packing`.
"""

from __future__ import annotations

import torch

from peakline.execution.stores import Stored, Ticket
from peakline.planning.packing import CODECS, Codec

__all__ = ["PackedMemory", "pack", "unpack"]

PIECE = 1 << 12
"""Elements that are packed at a time at least."""

PIECES = 64
"""Pieces of a large tensor: what is in between takes a few hundredths of its memory."""

LARGEST_FP8 = 448.0
"""Of E4M3 (OCP 8-bit floating point specification, §5)."""


def pack(elements: torch.Tensor, codec: Codec) -> tuple[torch.Tensor, ...] | None:
    """A flat tensor in fewer bits: codes and what scales them by group; None where an element is not finite."""
    count, device = elements.numel(), elements.device
    groups = -(-count // codec.group)
    codes = torch.empty(-(-count * codec.bits // 8), dtype=torch.uint8, device=device)
    scales = torch.empty((groups, codec.scale_bytes // 4), dtype=torch.float32, device=device)
    step = _step(count, codec)
    for start in range(0, count, step):
        size = min(step, count - start)
        rows = _rows(elements[start : start + size].float(), codec.group)
        first = start // codec.group
        own = scales[first : first + rows.shape[0]]
        if codec.name == "fp8":
            most = rows.abs().amax(1)
            own[:, 0] = torch.where(most > 0, most / LARGEST_FP8, 1.0)
            code = (rows / own[:, :1]).clamp_(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn).view(torch.uint8)
        else:
            low, high = rows.amin(1), rows.amax(1)
            top = (1 << codec.bits) - 1
            own[:, 0] = low
            own[:, 1] = torch.where(high > low, (high - low) / top, 1.0)
            code = (rows - own[:, :1]).div_(own[:, 1:]).round_().clamp_(0, top).to(torch.uint8)
        flat = code.flatten()[:size]
        if codec.bits == 4:
            flat = torch.nn.functional.pad(flat, (0, size % 2))
            codes[start // 2 : (start + size + 1) // 2] = flat[::2] | (flat[1::2] << 4)
        else:
            codes[start : start + size] = flat
    return (codes, scales) if bool(torch.isfinite(scales).all()) else None


def unpack(packed: tuple[torch.Tensor, ...], codec: Codec, target: torch.Tensor) -> None:
    """Write the elements back into the flat tensor `target`."""
    codes, scales = packed
    count = target.numel()
    step = _step(count, codec)
    for start in range(0, count, step):
        size = min(step, count - start)
        if codec.bits == 4:
            both = codes[start // 2 : (start + size + 1) // 2]
            code = torch.stack((both & 15, both >> 4), 1).flatten()[:size]
        else:
            code = codes[start : start + size]
        rows = _rows(code.view(torch.float8_e4m3fn).float() if codec.name == "fp8" else code.float(), codec.group)
        own = scales[start // codec.group : start // codec.group + rows.shape[0]]
        back = rows.mul_(own[:, :1]) if codec.name == "fp8" else rows.mul_(own[:, 1:]).add_(own[:, :1])
        target[start : start + size] = back.flatten()[:size]


def _step(count: int, codec: Codec) -> int:
    """Elements of a piece: whole groups."""
    return max(PIECE, -(-count // PIECES)) // codec.group * codec.group


def _rows(values: torch.Tensor, group: int) -> torch.Tensor:
    """[groups, group]; a short last group is filled up with its last element."""
    short = -values.numel() % group
    if short:
        values = torch.cat((values, values[-1:].expand(short)))
    return values.view(-1, group)


class _Done:
    def wait(self) -> None:
        return None


class _InFewerBits:
    """A storage that is packed; what cannot be (infinities, NaN) is held as it is."""

    def __init__(self, flat: torch.Tensor, codec: Codec) -> None:
        self._codec, self._like = codec, (flat.numel(), flat.dtype, flat.device)
        self._packed = pack(flat, codec)
        self._whole = flat.clone() if self._packed is None else None
        self.ticket: Ticket = _Done()

    def fetch(self) -> tuple[torch.Tensor, Ticket]:
        if self._whole is not None:
            return self._whole, _Done()
        count, dtype, device = self._like
        target = torch.empty(count, dtype=dtype, device=device)
        assert self._packed is not None
        unpack(self._packed, self._codec, target)
        return target, _Done()

    def into(self, target: torch.Tensor) -> Ticket:
        if self._whole is not None:
            target.view(self._whole.dtype).copy_(self._whole)
        elif self._packed is not None:
            unpack(self._packed, self._codec, target.view(self._like[1]))
        return _Done()

    def free(self) -> None:
        self._packed = self._whole = None


class PackedMemory:
    """Storages that stay on their device in fewer bits."""

    def __init__(self, codec: str) -> None:
        """Packing in the format of this name."""
        self._codec = CODECS[codec]

    def put(self, source: torch.Tensor) -> Stored:
        storage = source.untyped_storage()
        flat = torch.empty(0, dtype=source.dtype, device=source.device)
        flat.set_(storage, 0, (storage.nbytes() // source.element_size(),), (1,))
        return _InFewerBits(flat, self._codec)

    def close(self) -> None:
        return None
