"""Figures as people write them."""

from typing import Any

LARGEST = 1e100  # beyond it squares overflow; no figure of a run is near it


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def number(value: Any, decimals: int | None = None) -> str:
    """A figure as people write it: three significant digits (or so many decimals), a real minus sign, – for none."""
    if not is_number(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif isinstance(value, int):
        text = str(value)
    else:
        text = f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def signed(value: Any, decimals: int | None = None) -> str:
    """A change: as `number`, with a plus when it is one."""
    return ("+" if is_number(value) and value > 0 else "") + number(value, decimals)


def decimals_for(*values: Any) -> int:
    """One number of decimals for figures that stand side by side: so many that a share in 0..1 shows three."""
    largest = max((abs(value) for value in values if is_number(value)), default=0)
    return 3 if largest <= 1 else 2 if largest < 10 else 1


def duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{number(seconds)} s"


def arrow(before: Any, after: Any) -> str:
    if not (is_number(before) and is_number(after)) or number(before) == number(after):
        return ""
    return "▲" if after > before else "▼"
