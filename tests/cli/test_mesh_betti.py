"""`diffmatch mesh --betti`: the topology that was asked for, and what is said of it."""

import json

import pytest

from diffmatch.cli import betti, main
from diffmatch.cli.betti import parse_betti
from diffmatch.errors import InputError
from diffmatch.meshing import mesh_validity
from diffmatch.meshing.files import read_mesh

pytest.importorskip("trimesh")

FIELDS = """
def ball(points):
    return points.norm(dim=-1) - 0.6

def shell(points):
    return (points.norm(dim=-1) - 0.5).abs() - 0.2
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fields_for_betti.py").write_text(FIELDS)
    return tmp_path


def fitted(target, *words):
    command = ["mesh", f"fields_for_betti:{target}", "-o", "out.ply", "--resolution", "12", "--steps", "6"]
    return main([*command, "--device", "cpu", *words])


def test_a_ball_becomes_a_ring_and_the_certificate_agrees(capsys):
    assert fitted("ball", "--betti", "1,1,0") == 0
    assert "topology: 1,0,0 became 1,1,0 (drilled a tunnel); the mesh agrees" in capsys.readouterr().out
    assert mesh_validity(read_mesh("out.ply")).euler_characteristic == 0
    with open("out.json", encoding="utf-8") as file:
        topology = json.load(file)["topology"]
    assert topology["agree"]
    assert (topology["asked"], topology["before"], topology["betti"]) == ([1, 1, 0], [1, 0, 0], [1, 1, 0])
    assert (topology["mesh_euler"], topology["mesh_components"]) == (0, 1)


def test_a_cavity_is_filled_and_shown_in_the_report(folder):
    pytest.importorskip("plotly")
    assert fitted("shell", "--betti", "any,0,0", "--report", "page.html", "--quiet") == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "The mesh agrees with the field" in page
    assert "--betti any,0,0" in page
    assert mesh_validity(read_mesh("out.ply")).bodies == 1


def test_a_mesh_that_disagrees_is_said_plainly(monkeypatch, capsys, folder):
    pytest.importorskip("plotly")
    certificate = betti.TopologyEdit.certificate

    def of_half_the_mesh(self, mesh):
        return certificate(self, type(mesh)(mesh.vertices, mesh.faces[: len(mesh.faces) // 2]))

    monkeypatch.setattr(betti.TopologyEdit, "certificate", of_half_the_mesh)
    assert fitted("ball", "--betti", "1,0,0", "--report", "page.html") == 1
    assert "the mesh DISAGREES" in capsys.readouterr().err
    with open("out.json", encoding="utf-8") as file:
        topology = json.load(file)["topology"]
    assert not topology["agree"]
    assert topology["doubts"]
    assert "DISAGREES" in (folder / "page.html").read_text(encoding="utf-8")


def test_numbers_out_of_reach_end_before_the_fit(capsys, folder):
    assert fitted("ball", "--betti", "1,40,0") == 1
    assert "came only to" in capsys.readouterr().err
    assert not (folder / "out.ply").exists()


def test_the_form_of_the_option():
    assert parse_betti("1, 2,0") == (1, 2, 0)
    assert parse_betti("any,any,0") == (None, None, 0)
    assert parse_betti(None) is None
    for text in ("1,2", "0,0,0", "any,any,any", "1,-1,0", "1,x,0", ""):
        with pytest.raises(InputError, match="betti: want numbers of pieces"):
            parse_betti(text)
