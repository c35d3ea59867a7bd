"""The optimizer that a fit begins with where none is named."""

import logging

import pytest
import torch

from diffmatch import fit
from diffmatch.errors import InputError
from diffmatch.optim import choice as choice_module
from diffmatch.optim.choice import choose_optimizer


@pytest.fixture
def params(device):
    return [torch.zeros(1000, device=device)]


@pytest.mark.parametrize(("problem", "name"), [("smooth", "lbfgs"), ("absolute", "adamw"), ("sampled", "adamw")])
def test_each_kind_of_problem_has_its_optimizer_and_a_reason(params, problem, name):
    chosen = choose_optimizer(params, problem=problem)
    assert chosen.name == name
    assert chosen.reason


@pytest.mark.parametrize("options", [{"groups": 2}, {"reads_once": True}])
def test_lbfgs_is_not_taken_where_it_cannot_work(params, options):
    chosen = choose_optimizer(params, problem="smooth", **options)
    assert chosen.name == "adamw"
    assert "lbfgs, but" in chosen.reason


@pytest.mark.parametrize(
    ("memory", "names"),
    [(2 * 203 * 4000, ("lbfgs", "adamw")), (2 * 4 * 4000, ("adamw", "adamw")), (2 * 4 * 4000 - 1, ("adamw8bit",) * 2)],
)
def test_states_shrink_where_memory_is_short(params, monkeypatch, memory, names):
    monkeypatch.setattr(choice_module, "_memory", lambda device: float(memory))
    assert tuple(choose_optimizer(params, problem=problem).name for problem in ("smooth", "sampled")) == names


@pytest.mark.untyped
def test_an_unknown_kind_is_refused(params):
    with pytest.raises(InputError, match=r"problem: want .*smooth"):
        choose_optimizer(params, problem="rough")


def test_a_fit_takes_the_choice_and_says_so(device, caplog):
    x = torch.tensor([-1.2, 1.0], dtype=torch.float64, device=device, requires_grad=True)
    with caplog.at_level(logging.INFO, logger="diffmatch.fitting"):
        history = fit(
            [x], lambda: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, problem="smooth", steps=10, progress=False
        )
    assert (history.optimizer, history.reason) == ("lbfgs", "a smooth loss, the same at every evaluation")
    assert "lbfgs: a smooth loss" in caplog.text
    assert (x - 1).abs().max() < 1e-4
    named = fit([x], lambda: x.square().sum(), optimizer="adam", steps=1, progress=False)
    assert (named.optimizer, named.reason) == ("adam", "")
    instance = fit(None, lambda: x.square().sum(), optimizer=torch.optim.SGD([x], lr=0.1), steps=1, progress=False)
    assert (instance.optimizer, instance.reason) == ("SGD", "")
