import inspect

import pytest
import torch
from torch.optim import Optimizer

from diffmatch.errors import InputError
from diffmatch.optim import make_optimizer, optimizer_names, optimizer_spec
from diffmatch.optim.registry import as_optimizer


def leaf(*shape: int) -> torch.Tensor:
    return torch.ones(shape, requires_grad=True)


@pytest.mark.parametrize("name", optimizer_names())
class TestEveryOptimizer:
    def test_is_one_of_torch_and_starts_from_its_default_rate(self, name):
        optimizer = make_optimizer(name, [leaf(3)])
        assert isinstance(optimizer, Optimizer)
        assert optimizer.param_groups[0]["lr"] == optimizer_spec(name).lr

    def test_takes_rates_of_its_own_and_of_groups(self, name):
        assert make_optimizer(name, [{"params": [leaf(3)]}], lr=0.25).param_groups[0]["lr"] == 0.25
        assert make_optimizer(name, [{"params": [leaf(3)], "lr": 0.5}], lr=0.25).param_groups[0]["lr"] == 0.5

    def test_lowers_a_parabola(self, name):
        x = leaf(3)
        optimizer = make_optimizer(name, [x])

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (x - 3).square().sum()
            if getattr(optimizer, "needs_graph", False):
                return loss
            loss.backward()
            return loss.detach()

        first = float(closure().detach())
        for _ in range(20):
            optimizer.step(closure)
        assert float(closure().detach()) < first

    def test_options_of_the_table_are_options_of_the_factory(self, name):
        assert set(optimizer_spec(name).options) <= optimizer_spec(name).option_names()

    def test_unknown_option_is_named(self, name):
        with pytest.raises(InputError, match=r"optimizer_options: want one of .*, got 'nonsense'"):
            make_optimizer(name, [leaf(3)], nonsense=1)


def test_names_are_sorted_and_complete():
    wanted = {"adam", "adamw", "sgd", "rmsprop", "adagrad", "nadam", "radam", "adamax", "lbfgs", "rprop", "adafactor"}
    ours = {"lion", "exadam", "adam8bit", "adamw8bit", "lion8bit", "sgd8bit", "dct-adamw"}
    assert wanted | ours <= set(optimizer_names())
    assert list(optimizer_names()) == sorted(optimizer_names())


def test_defaults_that_differ_from_torch():
    assert make_optimizer("sgd", [leaf(3)]).param_groups[0]["momentum"] == 0.9
    assert make_optimizer("lbfgs", [leaf(3)]).param_groups[0]["line_search_fn"] == "strong_wolfe"


def test_options_override_the_table_and_reach_the_optimizer():
    optimizer = make_optimizer("sgd", [leaf(3)], momentum=0.5, nesterov=True)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert optimizer.param_groups[0]["nesterov"] is True


def test_groups_of_the_caller_are_not_changed():
    group = {"params": [leaf(3)], "lr": 0.5, "name": "mine"}
    optimizer = make_optimizer("adam", [group])
    assert group.keys() == {"params", "lr", "name"}
    assert optimizer.param_groups[0]["name"] == "mine"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamww", {}, r"optimizer: want one of adafactor, .*, got 'adamww' \(did you mean 'adamw'\?\)"),
        ("adam", {"beta": (0.9, 0.9)}, r"got 'beta' \(did you mean 'betas'\?\)"),
        ("adam", {"betas": (0.9, 2.0)}, r"optimizer_options: want settings that adam accepts, got an error: .*beta"),
        ("adam", {"lr": -1.0}, r"lr: want a number >= 0, got -1.0"),
        ("adam", {"lr": float("nan")}, r"lr: want a number >= 0, got nan"),
    ],
)
def test_bad_settings_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(name, [leaf(3)], **options)


def test_misspelt_setting_of_a_group_is_named():
    with pytest.raises(InputError, match=r"params: want one of .*, got 'weight_dekay' \(did you mean 'weight_decay'\?"):
        make_optimizer("adam", [{"params": [leaf(3)], "weight_dekay": 1.0}])


def test_second_group_is_refused_where_there_can_be_one():
    with pytest.raises(InputError, match="optimizer_options: want settings that lbfgs accepts"):
        make_optimizer("lbfgs", [{"params": [leaf(3)]}, {"params": [leaf(2)]}])


def test_instance_is_taken_as_it_is():
    x = leaf(3)
    optimizer = torch.optim.Adam([x])
    assert as_optimizer(optimizer, None) is optimizer
    assert as_optimizer(optimizer, [x]) is optimizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.1}, "lr: want None with an optimizer instance"),
        ({"options": {"eps": 1.0}}, "optimizer_options: want None with an optimizer instance"),
        ({"params": [torch.ones(2, requires_grad=True)]}, "params: want None or the parameters of the optimizer"),
    ],
)
def test_instance_with_other_settings_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        as_optimizer(torch.optim.Adam([leaf(3)]), **{"params": None, **arguments})


def test_name_needs_parameters():
    with pytest.raises(InputError, match="params: want tensors, parameter groups or a module, got None"):
        as_optimizer("adam", None)


def test_option_names_leave_out_what_is_no_option():
    assert not {"self", "params", "lr"} & optimizer_spec("adam").option_names()
    assert "betas" in optimizer_spec("adam").option_names()
    assert inspect.signature(torch.optim.Adam).parameters.keys() >= optimizer_spec("adam").option_names()
