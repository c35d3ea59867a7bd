import numpy as np
import pytest

from diffmatch.errors import InputError
from diffmatch.report import Frame, View
from diffmatch.report.figures import SCALE, curve_figure, mesh_figure, scale_colors
from diffmatch.report.render import parse_color

pytest.importorskip("plotly")


def test_a_short_curve_is_drawn_as_it_is():
    figure = curve_figure({"loss": [3.0, 2.0, 1.5]})
    (line,) = figure.data
    assert list(line.y) == [3.0, 2.0, 1.5]
    assert list(line.x) == [0, 1, 2]
    assert figure.layout.yaxis.type == "linear"


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1.0, 0.01], "log"), ([1.0, 0.5], "linear"), ([1.0, 0.0], "linear"), ([-1.0, 50.0], "linear")],
)
def test_the_axis_is_logarithmic_where_it_helps(values, kind):
    assert curve_figure({"loss": values}).layout.yaxis.type == kind
    assert curve_figure({"loss": values}, log=False).layout.yaxis.type == "linear"


def test_a_long_curve_is_smoothed_and_thinned():
    steps = np.arange(20_000)
    noise = np.exp(np.random.default_rng(0).normal(size=len(steps)))
    faint, bold = curve_figure({"loss": (np.exp(-steps / 4000) * noise).tolist()}).data
    assert len(faint.y) == len(bold.y) <= 4000
    assert (faint.x[0], faint.x[-1]) == (0, 19_999)
    assert faint.showlegend is False
    middle = slice(200, -200)
    truth = np.exp(-bold.x / 4000)
    assert np.abs(np.log(bold.y / truth))[middle].max() < 0.6 < np.abs(np.log(faint.y / truth))[middle].max()


def test_gaps_stay_gaps_and_are_not_spread_by_smoothing():
    values = np.full(100, 2.0)
    values[40:43] = np.nan
    _, bold = curve_figure({"loss": values.tolist()}, log=False).data
    assert np.isnan(bold.y).nonzero()[0].tolist() == [40, 41, 42]
    np.testing.assert_allclose(bold.y[~np.isnan(bold.y)], 2.0)


def test_several_curves_have_a_legend_and_colours_of_their_own():
    figure = curve_figure({"loss": [2.0, 1.0], "field": [1.0, 0.5]})
    assert figure.layout.showlegend
    assert len({line.line.color for line in figure.data}) == 2


@pytest.mark.untyped
@pytest.mark.parametrize("curves", [{}, {"loss": []}])
def test_nothing_to_draw_is_refused(curves):
    with pytest.raises(InputError, match=r"curves: want at least one curve with values"):
        curve_figure(curves)


def test_a_mesh_is_placed_in_the_frame_and_its_camera_is_the_view():
    vertices = np.array([[1000.0, 0, 0], [1002.0, 0, 0], [1000.0, 2, 0]])
    view, frame = View(distance=3.0), Frame.around(vertices)
    (surface,) = (figure := mesh_figure(vertices, np.array([[0, 1, 2]]), view=view, frame=frame)).data
    place = np.stack([surface.x, surface.y, surface.z], 1)
    assert place.dtype == np.float32
    assert np.linalg.norm(place, axis=1).max() == pytest.approx(0.5)
    eye = figure.layout.scene.camera.eye
    np.testing.assert_allclose([eye.x, eye.y, eye.z], view.basis()[2] * 1.5)
    assert '"bdata"' in figure.to_json()  # compact numbers


def test_values_are_shown_from_zero_to_the_limit():
    vertices = np.eye(3)
    figure = mesh_figure(
        vertices, np.array([[0, 1, 2]]), view=View(), frame=Frame.around(vertices), values=np.arange(3.0), limit=2.0
    )
    assert (figure.data[0].cmin, figure.data[0].cmax) == (0.0, 2.0)
    assert figure.data[0].intensity.tolist() == [0.0, 1.0, 2.0]


def test_scale_colors_meets_its_ends_and_stays_there():
    colors = scale_colors(np.array([-1.0, 0.0, 2.0, 9.0, np.nan]), limit=2.0).tolist()
    first, last = list(parse_color(SCALE[0])), list(parse_color(SCALE[-1]))
    assert colors == [first, first, last, last, first]
