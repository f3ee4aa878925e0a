"""Numbers as people read them."""

from __future__ import annotations

import math


def readable(value: float) -> str:
    """Returns a number of three digits that count, without an exponent: 11,500 for 11508, 0.00123 for 0.0012345."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def counted(count: float, what: str) -> str:
    """Returns a number of things in words: 1 false alarm, 2 false alarms, 0.5 false alarms."""
    number = str(count) if isinstance(count, int) else readable(count)
    return f"{number} {what}{'' if count == 1 else 's'}"


def readable_hours(hours: float) -> str:
    """Returns a length of time with the unit that suits it: 2.5 h, 2.08 min, 7.4 s."""
    if hours >= 1:
        return f"{readable(hours)} h"
    return f"{readable(60 * hours)} min" if 60 * hours >= 1 else f"{readable(3600 * hours)} s"
