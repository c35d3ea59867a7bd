import base64
import html as escaping
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from diffmatch.errors import InputError, MissingExtraError
from diffmatch.report import Metric, Report
from diffmatch.report import report as report_module

pytest.importorskip("plotly")

TETRAHEDRON = SimpleNamespace(
    vertices=np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]),
    faces=np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]),
)
HISTORY = SimpleNamespace(loss=[4.0, 2.0, 0.25], terms={"field": [3.0, 1.0, 0.2], "smooth": [1.0, 1.0, 0.05]})
NASTY = """<script>alert("x")</script> & 'quotes' </title>"""


class Page(HTMLParser):
    """What a test asks of a page: tags, what they load, and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.loads, self.text, self.data, self._inside = [], [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.loads += [value for name, value in attributes.items() if name in ("src", "href", "srcset", "action")]
        self._inside = (tag, attributes) if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = None if tag in ("script", "style") else self._inside

    def handle_data(self, data):
        if self._inside is None:
            self.text.append(data)
        elif self._inside[1].get("type") == "application/json":
            self.data[self._inside[1]["id"]] = json.loads(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full_report():
    report = Report("A title", summary="A summary")
    report.add_headline([Metric("mean distance", 0.00123, "box")])
    report.add_section("Shapes")
    report.add_meshes({"fit": TETRAHEDRON, "target": TETRAHEDRON}, caption="two of them")
    report.add_metrics([Metric("mean distance", 0.00123, "box", "how far apart"), Metric("watertight", True)])
    report.add_curves(HISTORY, caption="all terms")
    report.add_image(np.zeros((3, 3, 3), np.uint8), alt="a black square")
    report.add_svg("<svg xmlns='http://www.w3.org/2000/svg'></svg>", alt="nothing")
    report.add_settings({"resolution": 64, "lr": None}, command=["diffmatch", "mesh", "a part.stl", "-o", "out.glb"])
    return report


def test_everything_is_in_the_file(full_report):
    text = full_report.html()
    page = Page(text)
    assert all(place.startswith(("data:", "#")) for place in page.loads)
    assert not re.search(r"@import|url\(", text.split("</style>")[0])
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    assert text.count("plotly.js v") == 1  # the library once, for three figures


def test_what_was_added_is_shown(full_report):
    text = " ".join("".join(Page(full_report.html()).text).split())
    for part in ("A title", "A summary", "mean distance", "0.00123", "how far apart", "two of them", "all terms"):
        assert part in text
    assert re.search(r"watertight\s*yes", text)
    assert "diffmatch mesh 'a part.stl' -o out.glb" in text
    assert "4 vertices, 4 triangles" in text


def test_figures_hold_their_numbers(full_report):
    data = Page(full_report.html()).data
    assert list(data) == ["figure-1", "figure-2", "figure-3"]
    surface = data["figure-1"]["data"][0]
    assert surface["type"] == "mesh3d"
    assert np.frombuffer(base64.b64decode(surface["i"]["bdata"]), surface["i"]["dtype"]).tolist() == [0, 0, 1, 0]
    assert [line["name"] for line in data["figure-3"]["data"]] == ["loss", "field", "smooth"]


def test_pictures_and_figures_have_texts_and_tables_have_headers(full_report):
    page = Page(full_report.html())
    assert all(image["alt"] for image in page.attributes("img"))
    plots = [a for a in page.attributes("div") if "plot" in (a.get("class") or "").split()]
    assert len(plots) == 3
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert {header["scope"] for header in page.attributes("th")} == {"col", "row"}
    assert page.attributes("html")[0]["lang"] == "en"


def test_every_text_is_escaped():
    report = Report(NASTY, summary=NASTY)
    report.add_headline([Metric(NASTY, NASTY, NASTY)])
    report.add_section(NASTY)
    report.add_text(NASTY)
    report.add_code(NASTY)
    report.add_table([NASTY], [[NASTY]], caption=NASTY)
    report.add_metrics([Metric(NASTY, NASTY, NASTY, NASTY)], caption=NASTY)
    report.add_curves({NASTY: [1.0, 2.0]}, title=NASTY, caption=NASTY)
    report.add_meshes({NASTY: TETRAHEDRON}, values={NASTY: np.arange(4.0)}, values_title=NASTY, caption=NASTY)
    report.add_image(np.zeros((1, 1), np.uint8), alt=NASTY, caption=NASTY)
    report.add_settings({NASTY: NASTY}, command=[NASTY], caption=NASTY)
    text = report.html()
    assert "alert(" in text
    assert "<script>alert" not in text
    page = Page(text)
    assert len(page.attributes("script")) == 4  # two figures' data, plotly, the page's own
    assert page.data["figure-1"]["data"][0]["name"] == NASTY
    assert escaping.escape(NASTY) in text


def test_a_folded_table_is_there_but_closed():
    report = Report("Folded")
    report.add_metrics([Metric("mean distance", 0.5)], folded="All 1 figures")
    tags = [tag for tag, _ in Page(report.html()).tags]
    assert tags.index("details") < tags.index("summary") < tags.index("table")
    assert "open" not in Page(report.html()).attributes("details")[0]


def test_without_figures_no_script_is_embedded_and_plotly_is_not_needed(monkeypatch):
    def missing(module, *, extra):
        raise MissingExtraError(module)

    monkeypatch.setattr(report_module, "require", missing)
    report = Report("Words only")
    report.add_text("One paragraph.")
    text = report.html()
    assert "<script" not in text
    assert len(text) < 10_000


def test_a_table_of_contents_comes_with_the_fourth_section():
    report = Report("Long")
    for n in range(4):
        assert "<nav" not in report.html()
        report.add_section(f"Part {n}")
    assert '<nav aria-label="Contents">' in report.html()
    assert '<a href="#section-4">Part 3</a>' in report.html()


def test_a_single_term_that_is_the_loss_is_not_drawn_twice():
    report = Report("One")
    report.add_curves(SimpleNamespace(loss=[2.0, 1.0], terms={"loss only": [2.0, 1.0]}))
    assert [line["name"] for line in Page(report.html()).data["figure-1"]["data"]] == ["loss"]


def test_values_colour_the_mesh_and_have_a_legend():
    report = Report("Error")
    report.add_meshes({"fit": TETRAHEDRON}, values={"fit": np.array([0, 1, 2, 4.0])}, values_title="distance")
    page = Page(report.html())
    assert "linear-gradient" in next(a["style"] for a in page.attributes("span") if a.get("class") == "scale")
    assert page.data["figure-1"]["data"][0]["cmax"] == pytest.approx(3.94)  # the last percent does not set the scale


def test_a_large_mesh_is_simplified_for_the_interactive_view(monkeypatch):
    monkeypatch.setattr(report_module, "_MAX_FACES", 3)
    report = Report("Large")
    report.add_meshes({"fit": TETRAHEDRON})
    page = Page(report.html())
    assert "4 triangles; the interactive view is simplified to" in "".join(page.text)


def test_write_makes_a_file_and_leaves_nothing_else(full_report, tmp_path):
    full_report.write(tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_jpeg_and_png_files_are_told_apart():
    report = Report("Files")
    report.add_image(b"\xff\xd8\xff\xe0 and so on", alt="a photograph")
    report.add_image(b"\x89PNG and so on", alt="a drawing")
    sources = [image["src"].split(";")[0] for image in Page(report.html()).attributes("img")]
    assert sources == ["data:image/jpeg", "data:image/png"]


@pytest.mark.untyped
def test_wrong_parts_are_refused():
    report = Report("Wrong")
    with pytest.raises(InputError, match=r"rows: want 2 values a row, got 1"):
        report.add_table(["a", "b"], [["only one"]])
    with pytest.raises(InputError, match=r"meshes: want at least one mesh, got none"):
        report.add_meshes({})
    with pytest.raises(InputError, match=r"values\['fit'\]: want shape \(4,\), got \(3,\)"):
        report.add_meshes({"fit": TETRAHEDRON}, values={"fit": np.zeros(3)})
