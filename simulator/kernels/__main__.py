"""`python -m peakline.kernels` measures the suite's traffic under Triton's interpreter and prints the table."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from peakline.kernels import KERNELS, format_table, traffic_table


def main() -> int:
    """Print the table; exit code 1 if a measured byte count differs from its formula, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m peakline.kernels",
        description="Bytes that our Triton kernels move: measured, predicted, and the least possible.",
    )
    parser.add_argument("--kernel", action="append", choices=KERNELS, metavar="NAME", help=", ".join(KERNELS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument(
        "--shape", help="one problem instead of the suite's: m=100,n=70,k=33, lengths=60/17/33, causal=true"
    )
    parser.add_argument("--tile", help="one tile instead of the suite's: rows=32,cols=16,step=16")
    parser.add_argument("--json", action="store_true", help="all fields of every row, for machines")
    options = parser.parse_args()
    try:
        rows = traffic_table(
            options.kernel or KERNELS,
            options.dtype,
            shape=_settings("shape", options.shape),
            tile=_settings("tile", options.tile),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wrong = [row for row in rows if row["measured_by_tensor"] != row["predicted_by_tensor"]]
    if options.json:
        print(json.dumps(rows))
    else:
        print(format_table(rows))
        print(f"\n{len(rows) - len(wrong)} of {len(rows)} match to the byte, tensor by tensor; "
              f"largest error to float64: {max(row['error'] for row in rows):.0e}")  # fmt: skip
    return 1 if wrong and not options.json else 0


def _settings(field: str, text: str | None) -> dict[str, Any] | None:
    """`m=100,causal=true,lengths=3/5`, or the same as a JSON object.

    Raises:
        ValueError: naming the part that is neither.
    """
    if text is None:
        return None
    if text.startswith("{"):
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{field}: {text!r} is not JSON: {error}") from None
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    settings: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not value:
            raise ValueError(f"{field}: {part!r} is no setting; give NAME=VALUE, with commas between")
        settings[name] = _value(value)
    return settings


def _value(text: str) -> Any:
    """An integer, a list of them with slashes between, true or false, or a word."""
    words = {"true": True, "false": False}
    if text in words:
        return words[text]
    pieces = text.split("/")
    if all(piece.isdecimal() for piece in pieces):
        return tuple(int(piece) for piece in pieces) if len(pieces) > 1 else int(text)
    return text


if __name__ == "__main__":
    sys.exit(main())
