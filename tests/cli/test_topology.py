"""`diffmatch topology` from files to files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffmatch.cli import main
from diffmatch.cli.topology_inputs import guess_kind, read_data
from diffmatch.errors import InputError
from diffmatch.matching.graphs import Graph, write_graph
from diffmatch.meshing import Mesh, write_mesh

IMAGE = np.array([[3.0, 1.0, 4.0], [1.0, 5.0, 9.0], [2.0, 6.0, 5.0]])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(data, *words, code=0):
    assert main(["topology", str(data), "-o", "out.json", "--device", "cpu", *words]) == code


def content(path="out.json"):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def refused(capsys, data, *words):
    run(data, *words, code=2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix("diffmatch: error: ").strip()


def octagon():
    angle = np.arange(8) * math.pi / 4
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def test_an_image_has_the_bars_of_the_worked_example(capsys):
    np.save("image.npy", IMAGE)
    run("image.npy")
    found = content()
    assert (found["kind"], found["construction"], found["shape"]) == ("field", "V", [3, 3])
    bars = found["degrees"]["0"]
    pairs = list(zip(bars["births"], bars["deaths"], strict=True))
    assert sorted(pairs[:-1]) == [(1, 3), (5, 6)]
    assert pairs[-1] == (1, None)  # the endless class
    flat = IMAGE.flatten()
    assert [flat[at] for at in bars["birth_index"]] == bars["births"]
    assert [flat[at] for at in bars["death_index"][:-1]] == bars["deaths"][:-1]
    assert bars["death_index"][-1] is None
    assert found["degrees"]["1"]["births"] == []
    assert content("out.metrics.json")["metrics"]["components: bars"] == 2
    assert "out.json: 2 bars of field data" in capsys.readouterr().out


def test_options_reach_the_filtration():
    np.savez("image.npz", other=np.zeros(3), image=IMAGE.astype(np.float32))
    run("image.npz", "--construction", "T", "--degrees", "0", "-q")
    degrees = content()["degrees"]
    assert list(degrees) == ["0"]
    assert (degrees["0"]["births"], degrees["0"]["deaths"]) == ([1], [None])
    run("image.npz", "--superlevel", "--min-persistence", "1.5", "--degrees", "0", "-q")
    bars = content()["degrees"]["0"]
    assert (bars["births"], bars["deaths"]) == ([3, 9], [1, None])


def test_points_by_alpha_and_by_rips():
    np.save("points.npy", octagon())
    run("points.npy", "-q")
    loop = content()["degrees"]["1"]
    assert loop["births"] == pytest.approx([math.sin(math.pi / 8)])
    assert loop["deaths"] == pytest.approx([1.0])
    run("points.npy", "--filtration", "rips", "-q")
    loop = content()["degrees"]["1"]
    assert loop["births"] == pytest.approx([2 * math.sin(math.pi / 8)])
    assert loop["deaths"] == pytest.approx([2 * math.sin(3 * math.pi / 8)])


def test_arrays_hold_endless_bars_too(folder):
    np.save("points.npy", octagon())
    assert main(["topology", "points.npy", "-o", "out.npz", "--device", "cpu", "-q"]) == 0
    with np.load("out.npz") as arrays:
        assert np.isinf(arrays["deaths_0"]).sum() == 1
        assert arrays["births_0"].shape == (8,)
        assert arrays["death_index_0"].shape == (8, 3)
        assert (arrays["death_index_0"][np.isinf(arrays["deaths_0"])] == -1).all()
        assert arrays["deaths_1"] == pytest.approx([1.0])


def test_graphs_and_meshes_by_height_or_attribute():
    ring = Graph.from_edges([(0, 1), (1, 2), (2, 3), (3, 0)])
    positions = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0], [1.0, 3.0]])
    write_graph("ring.npz", Graph(ring.edges, 4, positions=positions, features=torch.tensor([[3.0], [1], [2], [0]])))
    run("ring.npz", "-q")
    degrees = content()["degrees"]
    assert (degrees["0"]["births"], degrees["0"]["deaths"]) == ([1, 0], [2, None])
    assert degrees["1"]["births"] == [3]  # one loop, though the file holds each edge in both directions
    run("ring.npz", "--values", "any", "-q")
    assert content()["degrees"]["0"]["births"][-1] == 0
    run("ring.npz", "--values", "x", "--superlevel", "-q")
    assert content()["degrees"]["1"]["births"] == [0]

    corners = torch.tensor([[0.0, 0, 0], [1, 0, 1], [0, 1, 2], [1, 1, 3]], dtype=torch.float64)
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    write_mesh("tetrahedron.ply", Mesh(corners, faces))
    run("tetrahedron.ply", "-q")
    degrees = content()["degrees"]
    assert (degrees["0"]["births"], degrees["2"]["births"]) == ([0], [3])
    run("tetrahedron.ply", "--values", "x", "-q")
    assert content()["degrees"]["2"]["births"] == [1]


def test_reports_show_diagram_data_and_two_parameters(folder):
    pytest.importorskip("plotly")
    np.save("points.npy", octagon())
    np.save("image.npy", IMAGE)
    np.save("other.npy", IMAGE.T[::-1].copy())
    for data, words in (("points.npy", ["--second", "0.5"]), ("image.npy", ["--second", "other.npy"])):
        run(data, *words, "--report", "page.html", "-q")
        page = (folder / "page.html").read_text(encoding="utf-8")
        for text in ("Persistence diagram", "Barcode", "Betti curves", "critical points", "Hilbert function"):
            assert text in page, text
        assert f"diffmatch topology {data}" in page
        measure = content()["signed_measures"][0]
        assert measure["degree"] == 0
        assert len(measure["points"]) == len(measure["weights"]) > 0


def test_images_are_read():
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.uint8([[0, 200, 10], [0, 200, 30], [0, 200, 40]])).save("picture.png")
    run("picture.png", "-q")
    assert content()["degrees"]["0"]["deaths"] == [200, None]


def test_what_a_file_holds_is_told_from_it(folder):
    np.save("cloud.npy", np.zeros((7, 3)))
    np.save("volume.npy", np.zeros((7, 3, 4)))
    np.savez("cloud.npz", points=np.zeros((4, 2)))
    np.savez("graph.npz", edges=np.zeros((2, 1)))
    (folder / "cloud.xyz").write_text("0,0\n1,2\n", encoding="utf-8")
    kinds = {name: guess_kind(folder / name) for name in ("cloud.npy", "volume.npy", "cloud.npz", "graph.npz")}
    assert kinds == {"cloud.npy": "points", "volume.npy": "field", "cloud.npz": "points", "graph.npz": "graph"}
    assert read_data("cloud.xyz").points.tolist() == [[0, 0], [1, 2]]
    assert read_data("cloud.npy", kind="field").values.shape == (7, 3)
    with pytest.raises(InputError, match="or --kind"):
        guess_kind(folder / "thing.docx")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.npy"], "data: want a file that exists"),
        (["image.npy", "--optimizer", "adam"], "optimizer: want none"),
        (["image.npy", "--degrees", "7"], "degrees: want"),
        (["image.npy", "--degrees", "a"], "degrees: want whole numbers"),
        (["image.npy", "--kind", "pictures"], "kind: want"),
        (["image.npy", "--construction", "W"], "construction: want"),
        (["image.npy", "--filtration", "cech"], "filtration: want"),
        (["image.npy", "--min-persistence", "-1"], "min_persistence: want"),
        (["image.npy", "--values", "x"], "values: want none"),
        (["image.npy", "--second", "points.npy"], "second: want an image of the shape"),
        (["image.npy", "--kind", "points"], "data: want"),
        (["points.npy", "--superlevel"], "superlevel: want no"),
        (["points.npy", "--second", "wide"], "second: want the bandwidth"),
        (["broken.npy"], "data: want a readable .npy file"),
        (["words.npy"], "data: want a field: real numbers"),
        (["line.xyz"], "data: want points"),
        (["bare.npz"], "values: want an attribute of the nodes"),
        (["bare.npz", "--values", "h"], "values: want an attribute of the nodes"),
    ],
)
def test_wrong_words_are_named(words, message, folder, capsys):
    np.save("image.npy", np.zeros((4, 5)))
    np.save("points.npy", octagon())
    np.save("words.npy", np.array([["a", "b", "c", "d"]]))
    (folder / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    (folder / "line.xyz").write_text("0 0 0 0\n", encoding="utf-8")
    write_graph("bare.npz", Graph.from_edges([(0, 1)]))
    assert message in refused(capsys, *words)
