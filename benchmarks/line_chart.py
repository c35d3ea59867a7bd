"""Line charts as plain SVG files, for the pictures of the documentation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Panel", "write_chart"]

COLORS = ("#3f7fd0", "#e08a2e", "#2f9e7a", "#b0559a", "#8a8f98", "#c9514a", "#7a6fd0", "#a08a2e")
DASHES = ("", "6 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT, LEFT, TOP, GAP, ROW = 360, 260, 58, 30, 70, 17
MOST_POINTS = 75


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Args:
        title: above it.
        x_title: below it.
        lines: points (x, y) by the name of the line; panels of one chart share names and colours.
    """

    title: str
    x_title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def write_chart(path: Path, panels: Sequence[Panel]) -> None:
    """Write panels side by side, values on a logarithmic axis, with one legend below.

    Args:
        path: the SVG file.
        panels: at least one, each with at least one positive value.
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    styles = {name: _style(index) for index, name in enumerate(names)}
    columns = max(1, len(panels) * 2)
    width = len(panels) * (WIDTH + GAP) + 20
    legend_top = TOP + HEIGHT + 52
    height = legend_top + ROW * math.ceil(len(names) / columns) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#555">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        parts += _panel(panel, LEFT + index * (WIDTH + GAP), styles)
    for index, name in enumerate(names):
        x = LEFT + (index % columns) * (width - LEFT) / columns
        y = legend_top + ROW * (index // columns)
        parts.append(f'<line x1="{x:.0f}" y1="{y - 4}" x2="{x + 26:.0f}" y2="{y - 4}" {styles[name]}/>')
        parts.append(f'<text x="{x + 32:.0f}" y="{y}">{escape(name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _panel(panel: Panel, left: float, styles: Mapping[str, str]) -> list[str]:
    points = [point for line in panel.lines.values() for point in line if point[1] > 0]
    right = max(x for x, _ in points) or 1.0
    low = math.log10(min(y for _, y in points))
    high = max(math.log10(max(y for _, y in points)), low + 0.1)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + WIDTH * x / right, TOP + HEIGHT * (high - math.log10(y)) / (high - low)

    parts = [
        f'<text x="{left}" y="{TOP - 12}" font-size="13">{escape(panel.title)}</text>',
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 32}" text-anchor="middle">{escape(panel.x_title)}</text>',
    ]
    for value in _log_ticks(low, high):
        _, y = place(0.0, value)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for tick in range(5):
        x, value = left + WIDTH * tick / 4, right * tick / 4
        parts.append(f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>')
    for name, line in panel.lines.items():
        corners = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in _thinned(line) if y > 0)
        parts.append(f'<polyline points="{corners}" fill="none" {styles[name]}/>')
    return parts


def _thinned(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every so many points of a long line, and its last one."""
    return [*line[: -1 : max(1, len(line) // MOST_POINTS)], *line[-1:]]


def _style(index: int) -> str:
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return f'stroke="{COLORS[index % len(COLORS)]}" stroke-width="1.6" stroke-dasharray="{dash or "none"}"'


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in the range, and 2 and 5 times them where there are few."""
    factors = (1.0,) if high - low > 2 else (1.0, 2.0, 5.0) if high - low > 0.5 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    values = [factor * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for factor in factors]
    return [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
