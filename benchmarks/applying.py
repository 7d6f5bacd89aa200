"""Planned against measured peaks of plans carried out on the CPU: prints the table of docs/applying.md.

    python benchmarks/applying.py

The models, plans and measurement are those of `tests/execution` (torch and transformers needed): two steps under the
plan in `torch.profiler`, the peak of the second.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / folder) for folder in ("execution", "capture")]

import torch  # noqa: E402
from small_models import CASES, planned  # noqa: E402
from test_applied import applied_peak  # noqa: E402

NAMES = {
    "gpt2": "GPT-2", "llama": "Llama", "bert": "BERT", "vit": "ViT", "resnet": "residual network", "unet": "U-Net",
}  # fmt: skip
ALLOWED = (("recompute",), ("swap",), ("recompute", "swap"))
SHARES = (0.85, 0.75, 0.65)
"""Budgets, of the step's own peak."""


def main() -> None:
    """A row for each model and what its plans may do, as it is found."""
    torch.set_num_threads(1)
    print("| model | allowed | 85 %: planned, measured (MB) | 75 % | 65 % |\n|---|---|---:|---:|---:|")
    for case in CASES:
        for allow in ALLOWED:
            cells = []
            for share in SHARES:
                plan = planned(case, share, *allow)
                with tempfile.TemporaryDirectory() as folder:
                    measured = applied_peak(case, plan, Path(folder))
                off = f"{plan.peak / measured - 1:.2%}".replace("-0.00", "0.00").replace("-", "−")
                cells.append(f"{plan.peak / 1e6:.3f}, {measured / 1e6:.3f} ({off})")
            print(f"| {NAMES[case.name]} | {' + '.join(allow)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
