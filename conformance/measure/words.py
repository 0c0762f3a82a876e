"""Numbers as people read them: the one place where a figure becomes text, for sentences and for tables.

A sentence says `1.9 million times`, a table `1.9e6`. Both say `3.17` and `12,300`.
"""

from __future__ import annotations

import math

NEARLY = 0.9995  # of a million, from which on it is said as one
LARGE = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def in_words(x: float, digits: int = 3) -> str:
    """A number in a sentence: `3.17`, `12,300`, `1.9 million`, `1.2 × 10⁻⁷`. `digits` count below a thousand."""
    size = abs(x)
    if size == 0 or 1e-4 <= size < NEARLY * 1e6 or not math.isfinite(x):
        return _plain(x, digits)
    for unit, name in LARGE:
        if NEARLY * unit <= size < NEARLY * 1e15:
            return _signed(f"{_short(x / unit)} {name}")
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{_signed(mantissa)} × 10{str(int(exponent)).translate(_RAISED)}"


def in_table(x: float, digits: int = 3) -> str:
    """A number in a column: as in a sentence below a million, and `1.9e6` or `1.2e-7` where that is shorter."""
    if x == 0 or 1e-4 <= abs(x) < NEARLY * 1e6 or not math.isfinite(x):
        return _plain(x, digits)
    mantissa, exponent = f"{x:.1e}".split("e")
    return _signed(f"{mantissa}e{int(exponent)}")


def of_the_value(x: float) -> str:
    """An error beside the value that it is an error of: `84 % of the value`, `3.2 times the value`, `1 part in 8.3
    million`."""
    if not 0 <= x < 2:
        return f"{in_words(x)} times the value"
    if 0 < x < 1e-3:
        return f"1 part in {in_words(1 / x)}"
    return f"{in_words(100 * x, 2 if x < 1 else 3)} % of the value"


def _plain(x: float, digits: int) -> str:
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return _signed(f"{x:,.0f}" if abs(x) >= 999.5 else f"{x:.{digits}g}")


def _short(x: float) -> str:
    """1.9, 2, 14 or 142: two digits, or the whole ones."""
    return f"{x:.1f}".removesuffix(".0") if abs(x) < 9.95 else f"{x:,.0f}"


def _signed(text: str) -> str:
    return text.replace("-", "−")
