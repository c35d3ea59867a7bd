"""What a report shows of merged models: the loss on the way between them, how alike their layers are, what could move.

A merge is anything with the attributes of `diffmatch.cli.merge_job.MergeOutcome`.
"""

from collections.abc import Sequence
from typing import Any

from diffmatch.errors import require
from diffmatch.report.figures import LINE_COLORS
from diffmatch.report.report import Report
from diffmatch.report.values import Metric

__all__ = ["add_merge", "add_plan", "barrier_figure", "layers_figure", "merge_metrics"]

_CLEAR = "rgba(0,0,0,0)"
_MAX_DRAWN = 60  # layers; more are drawn evenly thinned


def merge_metrics(merge: Any) -> list[Metric]:
    """The key figures of a merge.

    Args:
        merge: has ``barrier``, ``barrier_before``, ``losses``, ``loss``, ``objectives`` and ``differences``.
    """
    found = []
    if merge.barrier is not None:
        found.append(Metric("barrier", merge.barrier.barrier, "", "rise of the loss between the aligned models"))
        found.append(
            Metric("barrier before", merge.barrier_before.barrier, "", "the same between the models as they are")
        )
        mean = sum(merge.losses) / len(merge.losses)
        found.append(Metric("loss of the models", mean, "", "mean over the models"))
        found.append(Metric("loss merged", merge.loss, "", "of the merged model"))
    before, after = (sum(pair[side] for pair in merge.objectives) for side in (0, 1))
    found.append(Metric("agreement before", before, "", "inner products of the learned weights with the first model's"))
    found.append(Metric("agreement", after, "", "the same after alignment"))
    if merge.differences is not None:
        largest = max(merge.differences)
        found.append(Metric("change by permuting", largest, "", "of the outputs in double precision, of the largest"))
    return found


def add_merge(report: Report, merge: Any) -> None:
    """Add a merge: key figures, loss on the way, likeness of the layers, what was tried.

    Args:
        report: what to add to.
        merge: see :func:`merge_metrics`; and ``candidates``, ``layers`` and ``notes``.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    metrics = merge_metrics(merge)
    report.add_headline(metrics[:4])
    if merge.barrier is not None:
        report.add_figure(
            barrier_figure(merge.barrier, merge.barrier_before),
            alt=f"Loss between the models; the barrier is {merge.barrier_before.barrier:.3g} as they are and "
            f"{merge.barrier.barrier:.3g} aligned.",
            caption="Loss of weighted averages of the models. Flat is good: the models lie in one valley."
            if len(merge.barrier.lambdas) > 2
            else "Mean loss of the models and loss of their average.",
        )
    if merge.layers:
        _add_layers(report, merge.layers)
    if len(merge.candidates) > 1:
        report.add_table(("method", "repair", "agreement", "loss"), merge.candidates, caption="What was tried")
    report.add_metrics(metrics, caption="Measured")
    for note in merge.notes:
        report.add_text(note)


def add_plan(report: Report, plan: Any) -> None:
    """Add what could be permuted, and what could not and why.

    Args:
        report: what to add to.
        plan: a `diffmatch.matching.weights.plan.MergePlan`.
    """
    report.add_text(
        f"{plan.atoms} sets of units can be permuted; {plan.movable_percent:.1f} % of the {plan.parameters:,} learned "
        "numbers are in tensors that move."
    )
    rows = [(held.reason, held.axes, held.example) for held in plan.held]
    if rows:
        report.add_table(("why", "axes", "such as"), rows, caption="What stays")


def barrier_figure(barrier: Any, before: Any) -> Any:
    """Loss on the way between models, aligned and as they are, as a plotly figure.

    Args:
        barrier: has ``lambdas`` and ``losses``; of the aligned models.
        before: the same of the models as they are.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    go = require("plotly.graph_objects", extra="report")
    figure = go.Figure()
    curves = (("as they are", before, LINE_COLORS[4]), ("aligned", barrier, LINE_COLORS[0]))
    if len(barrier.lambdas) > 2:
        for name, curve, color in curves:
            x, y = curve.lambdas.tolist(), curve.losses.tolist()
            figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line={"color": color, "width": 2.2})
    else:
        for name, curve, color in curves:
            figure.add_bar(x=["the models", "their average"], y=curve.losses.tolist(), name=name, marker_color=color)
    _style(figure, y_title="loss", x_title="share of the second model" if len(barrier.lambdas) > 2 else "")
    return figure


def layers_figure(layers: Sequence[Any], statistic: str, *, title: str) -> Any:
    """One figure of two models' weights, layer by layer, before and after alignment, as a plotly figure.

    Args:
        layers: have ``name`` and, under the statistic's name, a pair of numbers or None.
        statistic: ``cosine``, ``leading`` or ``weighted``.
        title: of the vertical axis.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    go = require("plotly.graph_objects", extra="report")
    figure = go.Figure()
    shown = [layer for layer in layers if getattr(layer, statistic) is not None]
    shown = shown[:: max(-(-len(shown) // _MAX_DRAWN), 1)]
    names = [layer.name for layer in shown]
    for side, (name, color) in enumerate((("as they are", LINE_COLORS[4]), ("aligned", LINE_COLORS[0]))):
        values = [getattr(layer, statistic)[side] for layer in shown]
        figure.add_bar(x=names, y=values, name=name, marker_color=color)
    _style(figure, y_title=title, x_title="")
    figure.update_xaxes(tickangle=-40, automargin=True)
    return figure


def _add_layers(report: Report, layers: Sequence[Any]) -> None:
    pictures = (
        ("cosine", "cosine", "Cosine of the angle between the first two models' weights, layer by layer."),
        (
            "leading",
            "agreement of leading singular vectors",
            "How far the leading singular vectors of both models' layers agree, on both sides at once: 1 if they span "
            "the same directions, 0 if they know nothing of each other. Averages of models that agree keep them.",
        ),
    )
    for statistic, title, caption in pictures:
        if any(getattr(layer, statistic) is not None for layer in layers):
            alt = f"Bars before and after alignment for each layer: {title}."
            report.add_figure(layers_figure(layers, statistic, title=title), alt=alt, caption=caption)
    columns = ("layer", "cosine before", "after", "leading vectors before", "after", "all, weighted before", "after")
    rows = [
        (layer.name, *layer.cosine, *(layer.leading or (None, None)), *(layer.weighted or (None, None)))
        for layer in layers[:_MAX_DRAWN]
    ]
    report.add_table(columns, rows, caption="Agreement of the first two models, layer by layer")


def _style(figure: Any, *, x_title: str, y_title: str) -> None:
    figure.update_layout(
        template="none",
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        height=360,
        margin={"l": 64, "r": 16, "t": 16, "b": 48},
        hovermode="x unified",
        modebar={"bgcolor": _CLEAR},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={"title": {"text": x_title}, "zeroline": False},
        yaxis={"title": {"text": y_title}, "zeroline": False},
    )
