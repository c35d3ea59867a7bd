"""The record: by hand, as a table, to a file and back."""

import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.matching.weights import PermutationSpec, permutation_spec


@pytest.mark.parametrize("name", ["decoder, gqa", "densenet"])
def test_a_saved_spec_is_the_same_when_loaded(cases, name, tmp_path):
    spec = permutation_spec(cases[name].make(), cases[name].inputs())
    spec.save(tmp_path / "spec.json")
    assert PermutationSpec.load(tmp_path / "spec.json") == spec


@pytest.mark.parametrize("text", ["", "[]", '{"atoms": []}', '{"atoms": [], "layouts": {"a": [["?"]]}, "buffers": []}'])
def test_another_file_is_refused(text, tmp_path):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(InputError, match="a permutation spec in JSON"):
        PermutationSpec.load(tmp_path / "spec.json")


def test_the_table_names_every_atom_and_every_reason(cases):
    spec = permutation_spec(cases["mlp"].make(), cases["mlp"].inputs())
    table = str(spec)
    assert table.startswith("2 atoms, function checked")
    assert all(name in table for name in spec.atoms)
    assert all(frozen.reason in table for frozen in spec.frozen)
    assert "2.running_var (#0) (not learned)" in table


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"no": ("h",)}, "names of the state"),
        ({"weight": ("h",)}, "2 entries"),
        ({"weight": ("h", "h")}, "size 4"),
    ],
)
def test_a_spec_by_hand_must_fit(axes, message):
    with pytest.raises(InputError, match=message):
        PermutationSpec.by_hand(nn.Linear(3, 4).state_dict(), axes)


def test_a_fixed_atom_keeps_its_reason():
    spec = PermutationSpec.by_hand({"w": torch.zeros(4, 3)}, {"w": ("h", "g")}).without(["h"], "tried")
    assert list(spec.atoms) == ["g"]
    assert [(f.axis, f.size, f.reason) for f in spec.frozen] == [(0, 4, "tried")]
