import pytest
import torch
from torch import nn

from diffmatch.errors import InputError
from diffmatch.optim.parameters import parameter_groups, parameter_names


def leaf(*shape: int) -> torch.Tensor:
    return torch.ones(shape, requires_grad=True)


def test_one_tensor_is_one_parameter_and_not_its_rows():
    x = leaf(4, 3)
    (group,) = parameter_groups(x)
    assert group["params"][0] is x
    assert len(group["params"]) == 1


def test_iterators_are_read_once():
    x, y = leaf(4), leaf(3)
    (group,) = parameter_groups(iter([x, y]))
    assert [id(p) for p in group["params"]] == [id(x), id(y)]


def test_frozen_parameters_of_a_module_are_left_out():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    (group,) = parameter_groups(model)
    assert [id(p) for p in group["params"]] == [id(model.weight)]


def test_groups_keep_their_settings_and_are_copies():
    x, y = leaf(4), leaf(3)
    given = [{"params": x, "lr": 0.5}, {"params": iter([y])}]
    groups = parameter_groups(given)
    assert groups[0]["lr"] == 0.5
    assert groups[0]["params"][0] is x
    assert groups[1]["params"][0] is y
    assert given[0]["params"] is x


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([], "at least one tensor that requires gradients, got none"),
        ([{"params": []}], "at least one tensor"),
        (nn.Identity(), "at least one tensor"),
        ([torch.ones(3)], "tensors that require gradients, got one without, at 0"),
        ([leaf(3), leaf(3) * 2], "leaf tensors .*, got a computed one, at 1"),
        ([torch.ones(3, dtype=torch.complex64, requires_grad=True)], "real floating-point dtype, got torch.complex64"),
        ([torch.ones(3, dtype=torch.int64)], "real floating-point dtype, got torch.int64"),
        ([1.0], "tensors, parameter groups or a module, got float at 0"),
        ([leaf(3), {"params": leaf(2)}], 'mappings with "params" only, got Tensor among them'),
        ([{"parameters": leaf(2)}], 'mappings with "params" only, got dict among them'),
    ],
)
def test_what_cannot_be_fitted_is_named(params, message):
    with pytest.raises(InputError, match=f"params: want .*{message}"):
        parameter_groups(params)


def test_tensor_in_two_groups_is_named():
    x = leaf(3)
    with pytest.raises(InputError, match="each tensor once, got the same tensor twice"):
        parameter_groups([{"params": x}, {"params": [x]}])


def test_names_tell_place_and_shape_or_a_modules_own_name():
    x, model = leaf(4, 3), nn.Linear(3, 2)
    assert parameter_names([x], torch.optim.SGD([x]))[id(x)] == "parameter 0 of shape (4, 3)"
    names = parameter_names(model, torch.optim.SGD(model.parameters()))
    assert names[id(model.bias)] == "parameter 'bias'"
