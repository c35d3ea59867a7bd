"""Tables of measured quantities on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffmatch.report.values import Metric

__all__ = ["metric_table"]


def metric_table(metrics: "Sequence[Metric]") -> str:
    """Names, values and units in three columns, without colours, so that it can be piped and compared.

    Args:
        metrics: one line each.

    Returns:
        Lines of text, without the last newline.
    """
    from diffmatch.report.values import format_value

    cells = [(metric.name, format_value(metric.value).replace("\u202f", " "), metric.unit) for metric in metrics]
    widths = [max((len(row[column]) for row in cells), default=0) for column in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {unit}".rstrip() for name, value, unit in cells)
