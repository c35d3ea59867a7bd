import math
from functools import partial

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from diffmatch.errors import InputError
from diffmatch.optim.schedules import make_schedule


def optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": torch.ones(2, requires_grad=True), "lr": rate} for rate in rates or (1.0,)]
    return torch.optim.SGD(groups)


def rates(schedule, *, steps: int, warmup: int = 0) -> list[float]:
    opt = optimizer()
    made = make_schedule(schedule, opt, steps=steps, warmup=warmup)
    values = []
    for step in range(steps):
        made.apply(step)
        values.append(opt.param_groups[0]["lr"])
        opt.step()
        made.advance(1.0)
    return values


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("exponential", [1.0, 0.01**0.25, 0.1, 0.01**0.75]),
    ],
)
def test_named_schedules(name, wanted):
    assert rates(name, steps=4) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["constant", "linear"])
def test_warmup_rises_to_the_schedule(name):
    values = rates(name, steps=8, warmup=4)
    assert values[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert values[4:] == pytest.approx([1.0] * 4 if name == "constant" else [1.0, 0.75, 0.5, 0.25])


def test_warmup_longer_than_the_fit():
    assert rates("cosine", steps=2, warmup=4) == pytest.approx([0.25, 0.5])


def test_every_group_keeps_its_own_rate_and_gets_it_back():
    opt = optimizer(1.0, 0.1)
    made = make_schedule("linear", opt, steps=4)
    made.apply(2)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([0.5, 0.05])
    made.restore()
    assert [group["lr"] for group in opt.param_groups] == [1.0, 0.1]


def test_rate_in_a_tensor_stays_that_tensor():
    rate = torch.tensor(2.0)
    opt = torch.optim.Adam([torch.ones(2, requires_grad=True)], lr=rate, capturable=False, foreach=False)
    make_schedule("linear", opt, steps=4).apply(1)
    assert opt.param_groups[0]["lr"] is rate
    assert float(rate) == 1.5


def test_constant_rate_is_left_to_callbacks():
    opt = optimizer(1.0)
    made = make_schedule("constant", opt, steps=4)
    opt.param_groups[0]["lr"] = 0.3
    made.apply(1)
    made.restore()
    assert opt.param_groups[0]["lr"] == 0.3


def test_function_of_the_step():
    assert rates(lambda step: 0.5**step, steps=3, warmup=2) == pytest.approx([0.5, 0.5, 0.25])


@pytest.mark.parametrize("factory", [partial(StepLR, step_size=2, gamma=0.1), lambda opt: StepLR(opt, 2, gamma=0.1)])
def test_scheduler_of_torch(factory):
    assert rates(factory, steps=5) == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_scheduler_of_torch_that_looks_at_the_loss():
    assert rates(partial(ReduceLROnPlateau, patience=1, factor=0.5), steps=5) == pytest.approx([1, 1, 1, 0.5, 0.5])


def test_state_of_a_scheduler_of_torch_travels():
    first, second = optimizer(), optimizer()
    one, two = (make_schedule(partial(ExponentialLR, gamma=0.5), opt, steps=9) for opt in (first, second))
    first.step()
    one.advance(0.0)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    for opt, made in ((first, one), (second, two)):
        opt.step()
        made.advance(0.0)
        assert opt.param_groups[0]["lr"] == 0.25


def test_labels_and_dependence_on_the_number_of_steps():
    kinds = {"constant": False, "cosine": True, "linear": True, "exponential": True}
    for name, needs_steps in kinds.items():
        made = make_schedule(name, optimizer(), steps=4)
        assert (made.label, made.needs_steps) == (name, needs_steps)
    assert make_schedule(lambda step: 1.0, optimizer(), steps=4).label == "function"
    assert make_schedule(partial(StepLR, step_size=2), optimizer(), steps=4).label == "StepLR"


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", r"schedule: want one of .* \(did you mean 'cosine'\?\)"),
        (lambda other: other.nonsense, "schedule: want a function of the step or of the optimizer, got an error"),
        (lambda opt: opt.param_groups, "schedule: want a factor or a torch scheduler from the function, got list"),
    ],
)
def test_what_is_no_schedule_is_named(schedule, message):
    with pytest.raises(InputError, match=message):
        make_schedule(schedule, optimizer(), steps=4)


@pytest.mark.untyped
def test_other_types_are_named():
    with pytest.raises(InputError, match="schedule: want a name or a callable, got float"):
        make_schedule(0.5, optimizer(), steps=4)


@pytest.mark.parametrize("factor", [-1.0, math.nan, math.inf])
def test_factor_must_be_a_rate(factor):
    made = make_schedule(lambda step: factor if step else 1.0, optimizer(), steps=4)
    made.apply(0)
    with pytest.raises(InputError, match=r"schedule: want a finite factor >= 0, got .* at step 1"):
        made.apply(1)


def test_warmup_of_a_torch_scheduler_is_refused():
    with pytest.raises(InputError, match="warmup: want 0 with a scheduler of torch"):
        make_schedule(partial(StepLR, step_size=2), optimizer(), steps=4, warmup=2)
