"""A report: one HTML file that holds everything it shows and asks nothing of the network."""

import base64
import html
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from diffmatch.errors import InputError, require
from diffmatch.report.figures import MESH_COLORS, SCALE, curve_figure, mesh_figure, scale_colors
from diffmatch.report.page import page
from diffmatch.report.png import encode_png
from diffmatch.report.render import render_mesh_rgba
from diffmatch.report.simplify import cluster_vertices
from diffmatch.report.values import Metric, format_value
from diffmatch.report.view import Axis, Frame, MeshLike, View, mesh_arrays

__all__ = ["Report"]

_MAX_FACES = 200_000  # of an interactive mesh; larger ones make the page slow to open
_STILL_SIZE = {"width": 800, "height": 600}


class Report:
    """Collects what a job has to show, part by part, and writes it as one self-contained HTML file.

    Every text is escaped: names and messages may hold any character.

    Args:
        title: heading of the page.
        summary: a sentence under it.

    Example:
        >>> report = Report("Two numbers")
        >>> report.add_metrics([Metric("mean distance", 0.012, "mm", "how far apart the surfaces are")])
        >>> "mean distance" in report.html()
        True
    """

    def __init__(self, title: str, *, summary: str = "") -> None:
        self.title, self.summary = title, summary
        self._parts: list[str] = []
        self._sections: list[str] = []
        self._data: list[str] = []

    def add_headline(self, metrics: Sequence[Metric]) -> None:
        """Add the key figures, large, in a row."""
        cells = "".join(
            f"<div><dt>{html.escape(metric.name)}</dt><dd>{html.escape(format_value(metric.value, digits=3))} "
            f"<small>{html.escape(metric.unit)}</small></dd></div>"
            for metric in metrics
        )
        self._parts.append(f'<dl class="headline">{cells}</dl>')

    def add_section(self, title: str) -> None:
        """Begin a section; what is added next stands in it."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="section-{len(self._sections)}">{html.escape(title)}</h2>')

    def add_text(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def add_code(self, text: str) -> None:
        """Add text that keeps its lines and spaces, such as a command."""
        self._parts.append(f"<pre><code>{html.escape(text)}</code></pre>")

    def add_table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> None:
        """Add a table; the first column names the rows, numbers are aligned on the right.

        Args:
            columns: headings.
            rows: one value a column.
            caption: what the table shows.

        Raises:
            InputError: a row has another length than the headings.
        """
        for row in rows:
            if len(row) != len(columns):
                raise InputError("rows", f"{len(columns)} values a row", str(len(row)))
        numeric = [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
        head = "".join(
            f'<th scope="col"{_number_class(is_number)}>{html.escape(column)}</th>'
            for column, is_number in zip(columns, numeric, strict=True)
        )
        body = "".join(f"<tr>{_row(row)}</tr>" for row in rows)
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._parts.append(
            f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def add_metrics(self, metrics: Sequence[Metric], *, caption: str = "", folded: str = "") -> None:
        """Add a table of measured quantities with their units and what they mean.

        Args:
            metrics: one row each.
            caption: what the table shows.
            folded: shown instead, until a click on it opens the table.
        """
        rows = "".join(
            f'<tr><th scope="row">{html.escape(metric.name)}</th>'
            f'<td class="number">{html.escape(format_value(metric.value))}</td>'
            f'<td>{html.escape(metric.unit)}</td><td class="meaning">{html.escape(metric.meaning)}</td></tr>'
            for metric in metrics
        )
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        head = "".join(f'<th scope="col"{c}>{name}</th>' for name, c in _METRIC_COLUMNS)
        table = f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        if folded:
            table = f"<details><summary>{html.escape(folded)}</summary>{table}</details>"
        self._parts.append(table)

    def add_curves(
        self,
        curves: Mapping[str, Sequence[float]] | Any,
        *,
        title: str = "loss",
        caption: str = "",
        log: bool | None = None,
    ) -> None:
        """Add lines over the steps of a fit.

        Args:
            curves: a name and its values for each line, or the history that `diffmatch.fit` returns, of which the loss
                and its terms are shown.
            title: of the vertical axis, with the unit.
            caption: what is to be seen.
            log: logarithmic values; by default where it helps.

        Raises:
            InputError: nothing to draw.
            MissingExtraError: plotly is not installed.
        """
        lines = curves if isinstance(curves, Mapping) else _history_curves(curves)
        figure = curve_figure(lines, y_title=title, log=log)
        names = ", ".join(lines)
        last = "; ".join(f"{name} ends at {format_value(float(values[-1]))}" for name, values in lines.items())
        self.add_figure(figure, alt=f"Curves over the steps: {names}. {last}.", caption=caption)

    def add_figure(self, figure: Any, *, alt: str, caption: str = "") -> None:
        """Add a plotly figure.

        Args:
            figure: a ``plotly.graph_objects.Figure``; its text and grid take the page's colours.
            alt: what it shows, for readers who cannot see it.
            caption: text below.
        """
        key = self._add_data(figure)
        self._parts.append(
            f'<figure class="chart"><div class="plot" data-figure="{key}" role="img" aria-label="{html.escape(alt)}">'
            f"</div>{_caption(caption)}</figure>"
        )

    def add_meshes(
        self,
        meshes: Mapping[str, MeshLike],
        *,
        up: Axis = "z",
        values: Mapping[str, Any] | None = None,
        values_title: str = "",
        caption: str = "",
    ) -> None:
        """Add meshes beside each other, at one scale, turned together; still pictures stand in where WebGL is missing.

        Args:
            meshes: a name for each.
            up: the axis that is up in the pictures.
            values: for some of the names, one number a vertex (at least zero), shown as colour.
            values_title: what the numbers are, with the unit.
            caption: text below.

        Raises:
            InputError: no mesh, or one without faces or with bad values.
            MissingExtraError: plotly is not installed.
        """
        if not meshes:
            raise InputError("meshes", "at least one mesh", "none")
        arrays = {name: mesh_arrays(mesh) for name, mesh in meshes.items()}
        everything = np.concatenate([vertices for vertices, _ in arrays.values()])
        frame = Frame.around(everything)
        view = View.standard(up).fitted(everything, frame)
        figures = []
        for index, (name, (vertices, faces)) in enumerate(arrays.items()):
            color = MESH_COLORS[index % len(MESH_COLORS)]
            shown = None if values is None or name not in values else _vertex_values(name, values[name], len(vertices))
            figures.append(self._mesh(name, vertices, faces, shown, view, frame, color, values_title))
        self._parts.append(
            f'<div class="meshes">{"".join(figures)}</div>'
            '<div class="tools"><label><input type="checkbox"> edges</label><button type="button">reset view</button>'
            "<span>Drag to turn all together, scroll to zoom.</span></div>"
            '<p class="note no-webgl" hidden>Still pictures: this browser has no WebGL for the interactive view.</p>'
            + (f'<p class="note">{html.escape(caption)}</p>' if caption else "")
        )

    def _mesh(
        self,
        name: str,
        vertices: np.ndarray,
        faces: np.ndarray,
        values: np.ndarray | None,
        view: View,
        frame: Frame,
        color: str,
        values_title: str,
    ) -> str:
        """One mesh: the still picture, and the interactive view that takes its place."""
        limit = float(np.nanquantile(values, 0.99)) if values is not None else 1.0
        paint = color if values is None else scale_colors(values[faces].mean(axis=1), limit=limit)
        picture = render_mesh_rgba(_Triangles(vertices, faces), view=view, frame=frame, color=paint, **_STILL_SIZE)
        few_vertices, few_faces, owner = cluster_vertices(vertices, faces, max_faces=_MAX_FACES)
        few_values = None
        if values is not None:
            few_values = np.bincount(owner, weights=values) / np.bincount(owner)
        figure = mesh_figure(
            few_vertices,
            few_faces,
            view=view,
            frame=frame,
            color=color,
            values=few_values,
            limit=limit,
        )
        key = self._add_data(figure)
        size = f"{format_value(len(vertices))} vertices, {format_value(len(faces))} triangles"
        if len(few_faces) < len(faces):
            size += f"; the interactive view is simplified to {format_value(len(few_faces))} triangles"
        legend = ""
        if values is not None:
            legend = _legend(values_title, limit)
        alt = html.escape(f"The mesh {name}, shaded, seen from the front, right and above: {size}.")
        return (
            f'<figure><div class="stage"><img class="still" alt="{alt}" src="{_data_url(encode_png(picture))}">'
            f'<div class="plot" data-figure="{key}" role="img" aria-label="{alt}"></div></div>'
            f"<figcaption><b>{html.escape(name)}</b> {html.escape(size)}{legend}</figcaption></figure>"
        )

    def add_image(self, image: bytes | UInt8[np.ndarray, "h w *c"], *, alt: str, caption: str = "") -> None:
        """Add a picture.

        Args:
            image: the bytes of a PNG or JPEG file, or an array, grey (h, w), RGB (h, w, 3) or RGBA (h, w, 4), uint8.
            alt: what it shows, for readers who cannot see it.
            caption: text below.
        """
        data = image if isinstance(image, bytes) else encode_png(image)
        kind = "image/jpeg" if data[:2] == b"\xff\xd8" else "image/png"
        self._add_picture(_data_url(data, kind), alt, caption)

    def add_svg(self, svg: str, *, alt: str, caption: str = "") -> None:
        """Add a drawing; as an image, so that scripts and links in it do nothing."""
        self._add_picture(_data_url(svg.encode(), "image/svg+xml"), alt, caption)

    def _add_picture(self, url: str, alt: str, caption: str) -> None:
        self._parts.append(f'<figure><img alt="{html.escape(alt)}" src="{url}">{_caption(caption)}</figure>')

    def add_settings(
        self, settings: Mapping[str, object], *, command: Sequence[str] = (), caption: str = "Settings and versions"
    ) -> None:
        """Add what the result depends on, and the command line that makes it again.

        Args:
            settings: names and values.
            command: its words; quoted for a shell where needed.
            caption: of the table.
        """
        if command:
            self.add_text("To make this again:")
            self.add_code(shlex.join(command))
        self.add_table(
            ("setting", "value"), [(name, _setting(value)) for name, value in settings.items()], caption=caption
        )

    def html(self) -> str:
        """The page as text."""
        script = require("plotly.offline", extra="report").get_plotlyjs() if self._data else ""
        return page(
            title=self.title,
            summary=self.summary,
            sections=self._sections,
            parts=self._parts,
            data=self._data,
            plotly=script,
        )

    def write(self, path: str | Path) -> None:
        """Write the page; an existing file is replaced only when the new one is complete.

        Raises:
            InputError: the place cannot be written.
        """
        from diffmatch.io import atomic_write

        text = self.html()
        with atomic_write(Path(path)) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def _add_data(self, figure: Any) -> str:
        """Keep a figure's data for the end of the page; returns the id to find it by."""
        self._data.append(figure.to_json())
        return f"figure-{len(self._data)}"


class _Triangles:
    """Checked arrays in the shape of a mesh."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        self.vertices, self.faces = vertices, faces


_METRIC_COLUMNS = (("metric", ""), ("value", ' class="number"'), ("unit", ""), ("meaning", ""))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _number_class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _row(row: Sequence[object]) -> str:
    first = f'<th scope="row">{html.escape(format_value(row[0]))}</th>' if row else ""
    return first + "".join(
        f"<td{_number_class(_is_number(value))}>{html.escape(format_value(value))}</td>" for value in row[1:]
    )


def _setting(value: object) -> str:
    """Settings are shown as they were given, not rounded."""
    return format_value(value) if value is None or isinstance(value, bool) else str(value)


def _legend(title: str, limit: float) -> str:
    """The colour scale of values on a mesh; the last colour stands for all larger values."""
    return (
        f'<span class="legend">{html.escape(title)}</span><span class="legend">0 '
        f'<span class="scale" style="background: linear-gradient(to right, {", ".join(SCALE)})"></span> '
        f"≥ {html.escape(format_value(limit, digits=2))}</span>"
    )


def _caption(text: str) -> str:
    return f"<figcaption>{html.escape(text)}</figcaption>" if text else ""


def _data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _history_curves(history: Any) -> dict[str, Sequence[float]]:
    """The loss and its terms; a single term that is the loss itself is left out."""
    curves: dict[str, Sequence[float]] = {"loss": history.loss}
    terms = {name: values for name, values in history.terms.items() if len(values)}
    if len(terms) > 1 or any(list(values) != list(history.loss) for values in terms.values()):
        curves |= terms
    return curves


def _vertex_values(name: str, values: Any, count: int) -> np.ndarray:
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if array.shape != (count,):
        raise InputError(f"values[{name!r}]", f"shape ({count},)", str(array.shape))
    return array
