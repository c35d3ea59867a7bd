"""Numbers as people read them; shared by the report and by what the command line prints."""

import math
from dataclasses import dataclass

__all__ = ["Metric", "format_value"]


@dataclass(frozen=True)
class Metric:
    """One measured quantity, ready to be shown.

    Args:
        name: what was measured, such as ``"mean distance"``.
        value: the number, a truth value or a text; None where it is not defined.
        unit: such as ``"°"`` or ``"% of the longest side"``; empty for counts.
        meaning: one line for a reader who does not know the name.
    """

    name: str
    value: object
    unit: str = ""
    meaning: str = ""


def format_value(value: object, *, digits: int = 4) -> str:
    """A value as short text.

    Args:
        value: numbers are rounded, truth values become yes and no, None a dash, sequences are joined by commas.
        digits: significant ones of a float.

    Returns:
        The text, without markup.
    """
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return ", ".join(format_value(part, digits=digits) for part in value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # numpy and torch scalars
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")  # a narrow space between groups of three
    if isinstance(value, float):
        return _format_float(value, digits)
    return str(value)


def _format_float(value: float, digits: int) -> str:
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if 10**digits <= abs(value) < 1e6:  # an exponent would be longer than the number
        return format_value(round(value))
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
