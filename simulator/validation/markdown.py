"""Tables and percentages as the reports write them."""

from __future__ import annotations

import pandas as pd

__all__ = ["markdown", "percent"]


def percent(value: float, *, sign: bool = True) -> str:
    """A share as a percentage with two decimals."""
    return f"{value * 100:+.2f} %" if sign else f"{value * 100:.2f} %"


def markdown(table: pd.DataFrame) -> str:
    """A pipe table; integers with thousands separators, missing values empty."""

    def text(value: object) -> str:
        if value is None or (isinstance(value, float) and pd.isna(value)):
            return ""
        if isinstance(value, float) and value.is_integer():
            return f"{int(value):,}"
        if isinstance(value, int) and not isinstance(value, bool):
            return f"{value:,}"
        return str(value).replace("|", "\\|")

    columns = [str(c).replace("|", "\\|") for c in table.columns]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(text(v) for v in row) + " |" for row in table.astype(object).itertuples(index=False)]
    return "\n".join(lines)
