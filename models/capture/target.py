"""What a captured program would run on: the facts that decide which kernels PyTorch picks and what they allocate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A device, as far as PyTorch's choice of kernels goes.

    Attributes:
        kind: `cuda`, or `cpu` for the machine that captures.
        capability: CUDA compute capability, (9, 0) for an H100.
        multiprocessors: number of streaming multiprocessors.
        threads: threads resident on one.
        shared_memory: bytes of shared memory a block may use at most.
        torch: version whose rules apply, (2, 13).
        cudnn_attention: whether cuDNN's attention comes before flash; None: as the release does.
    """

    kind: Literal["cuda", "cpu"] = "cuda"
    capability: tuple[int, int] = (9, 0)
    multiprocessors: int = 132
    threads: int = 2048
    shared_memory: int = 232_448
    torch: tuple[int, int] = (2, 13)
    cudnn_attention: bool | None = None

    @property
    def prefers_cudnn(self) -> bool:
        """`check_prefer_cudnn_attention` (transformers/cuda/sdp_utils.cpp of ATen): on sm_90 and sm_100.

        It asks for a cuDNN later than 9.15.0, which the wheels of torch bring since 2.11 (huggingface/transformers pull
        request 48163).
        """
        if self.cudnn_attention is not None:
            return self.cudnn_attention
        return self.torch >= (2, 11) and self.capability in ((9, 0), (10, 0))
