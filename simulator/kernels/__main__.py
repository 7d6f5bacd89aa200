"""`python -m peakline.kernels` measures the suite's traffic under Triton's interpreter and prints the table."""

from __future__ import annotations

import argparse
import json
import sys

from peakline.kernels import KERNELS, format_table, traffic_table


def main() -> int:
    """Print the table; exit code 1 if a measured byte count differs from its formula, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m peakline.kernels",
        description="Bytes that our Triton kernels move: measured, predicted, and the least possible.",
    )
    parser.add_argument("--kernel", action="append", choices=KERNELS, metavar="NAME", help=", ".join(KERNELS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    parser.add_argument("--json", action="store_true", help="all fields of every row, for machines")
    options = parser.parse_args()
    try:
        rows = traffic_table(options.kernel or KERNELS, options.dtype)
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


if __name__ == "__main__":
    sys.exit(main())
