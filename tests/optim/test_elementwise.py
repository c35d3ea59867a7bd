"""What all elementwise optimizers share, asked of each of them."""

import copy
import io

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from diffmatch import fit
from diffmatch.errors import InputError
from diffmatch.optim import Adam8bit, AdamW8bit, DCTAdamW, EXAdam, Lion, Lion8bit, SGD8bit, optimizer_names

PLAIN = [Lion, EXAdam]
CODED = [AdamW8bit, Adam8bit, Lion8bit, SGD8bit]
ALL = [*PLAIN, *CODED, DCTAdamW]
NAMES = ["lion", "exadam", "adam8bit", "adamw8bit", "lion8bit", "sgd8bit", "dct-adamw"]
every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
all_but_dct = pytest.mark.parametrize("kind", [*PLAIN, *CODED], ids=lambda kind: kind.__name__)


def leaves(generator: torch.Generator, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def copies(params: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach().clone().requires_grad_() for p in params]


def pull(params: list[torch.Tensor], t: int) -> None:
    """Gradients that depend on the parameters and on the step, entry by entry."""
    for p in params:
        wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + t).reshape(p.shape)
        p.grad = (p.detach().double() - wave).to(p.dtype)


def run(optimizer: torch.optim.Optimizer, steps: int, *, start: int = 0) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(start, start + steps):
        pull(params, t)
        optimizer.step()


SHAPES = [(), (3,), (70, 70), (5, 6, 7), (17, 16, 17), (2, 3, 4, 5), (2, 2, 2, 3, 3), (0,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@all_but_dct
def test_kernel_agrees_with_the_tensor_operations(kind, dtype, generator):
    params = leaves(generator, dtype, *SHAPES)
    others = copies(params)
    options = {"lr": 0.01, "weight_decay": 0.1, "maximize": False}
    run(kind(params, **options), 4)
    run(kind(others, **options, fused=False), 4)
    tight = 1e-12 if dtype == torch.float64 else 3e-6
    for p, other in zip(params, others, strict=True):
        if kind in CODED:  # a rounding apart, two neighbouring codes
            assert (p - other).abs().quantile(0.99) < 1e-5 if p.numel() > 1000 else True
            torch.testing.assert_close(p, other, atol=2e-4, rtol=0)
        else:
            torch.testing.assert_close(p, other, atol=tight, rtol=tight)


@every
def test_bits_do_not_depend_on_threads(kind, generator):
    (p,) = leaves(generator, torch.float32, (401, 501))
    (q,) = copies([p])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        run(kind([p], lr=0.01), 2)
        torch.set_num_threads(3)
        run(kind([q], lr=0.01), 2)
    finally:
        torch.set_num_threads(before)
    if kind is DCTAdamW:  # torch's products add in another order
        torch.testing.assert_close(p, q)
    else:
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@every
def test_reload_continues_to_the_same_bits(kind, dtype, generator):
    params = leaves(generator, dtype, (70, 70), (30,))
    optimizer = kind(params, lr=0.01, weight_decay=0.01)
    run(optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    others = copies(params)
    run(optimizer, 3, start=3)
    file.seek(0)
    again = kind(others, lr=0.5)
    again.load_state_dict(torch.load(file, weights_only=True))
    run(again, 3, start=3)
    for p, other in zip(params, others, strict=True):
        assert torch.equal(p, other)


@every
def test_loaded_state_is_not_shared(kind, generator):
    params = leaves(generator, torch.float32, (70, 70))
    first = kind(params)
    run(first, 1)
    others = copies(params)
    second = kind(others)
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict()["state"][0])
    run(second, 1, start=1)
    for key, value in first.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key]))


@all_but_dct
def test_state_travels_to_another_dtype(kind, generator):
    params = leaves(generator, torch.float32, (70, 70), (5,))
    first = kind(params, lr=0.01)
    run(first, 2)
    others = [p.detach().double().requires_grad_() for p in params]
    second = kind(others, lr=0.01)
    second.load_state_dict(first.state_dict())
    run(first, 2, start=2)
    run(second, 2, start=2)
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p.double(), other, atol=2e-4, rtol=0)


@every
def test_groups_have_settings_of_their_own(kind, generator):
    first, second = leaves(generator, torch.float32, (20, 20), (20, 20))
    alone = copies([first, second])
    together = kind([{"params": [first], "lr": 0.01, "weight_decay": 0.2}, {"params": [second]}], lr=0.1)
    apart = [kind([alone[0]], lr=0.01, weight_decay=0.2), kind([alone[1]], lr=0.1)]
    run(together, 3)
    for optimizer in apart:
        run(optimizer, 3)
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])


@every
def test_missing_gradients_are_skipped_and_latecomers_start_at_their_first_step(kind, generator):
    late, early = leaves(generator, torch.float32, (20, 20), (20, 20))
    (fresh,) = copies([late])
    optimizer, start = kind([early, late], lr=0.1), late.detach().clone()
    for t in range(3):
        pull([early], t)
        optimizer.step()
    assert torch.equal(late, start)
    assert late not in optimizer.state
    pull([late], 5)
    early.grad = None
    optimizer.step()
    other = kind([fresh], lr=0.1)
    pull([fresh], 5)
    other.step()
    assert torch.equal(late, fresh)


@every
def test_maximize_climbs(kind, generator):
    params = leaves(generator, torch.float32, (70, 70), (5,))
    others = copies(params)
    up, down = kind(params, lr=0.01, maximize=True), kind(others, lr=0.01)
    for t in range(3):
        pull(others, t)
        for p, other in zip(params, others, strict=True):
            p.grad = -other.grad
        up.step()
        down.step()
    for p, other in zip(params, others, strict=True):
        assert torch.equal(p, other)


@pytest.mark.parametrize("fused", [None, False])
@all_but_dct
def test_rate_may_be_a_tensor(kind, fused, generator):
    params = leaves(generator, torch.float32, (70, 70), (5,))
    others = copies(params)
    run(kind(params, lr=torch.tensor(0.25), weight_decay=0.5, fused=fused), 2)
    run(kind(others, lr=0.25, weight_decay=0.5, fused=fused), 2)
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other)


@every
def test_closure_is_called_with_gradients_on(kind, generator):
    (x,) = leaves(generator, torch.float32, (4, 4))
    optimizer = kind([x], lr=0.01)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


@every
def test_schedulers_of_torch(kind, generator):
    optimizer = kind(leaves(generator, torch.float32, (4, 4)), lr=0.1)
    scheduler = CosineAnnealingLR(optimizer, 2)
    run(optimizer, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    start = optimizer.param_groups[0]["params"][0].detach().clone()
    scheduler.step()
    run(optimizer, 1)
    torch.testing.assert_close(optimizer.param_groups[0]["params"][0].detach(), start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [Lion, EXAdam, AdamW8bit, Lion8bit, DCTAdamW], ids=lambda kind: kind.__name__)
def test_small_steps_in_half_precision_arrive_on_the_mean(kind, dtype):
    half = torch.ones(80, 80, dtype=dtype, requires_grad=True)
    single = torch.ones(80, 80, requires_grad=True)
    options = {"lr": 1e-3, "weight_decay": 0.0} | ({"clip": 1.0} if kind is EXAdam else {})
    optimizers = kind([half], **options), kind([single], **options)
    for _ in range(10):
        half.grad, single.grad = torch.ones_like(half), torch.ones_like(single)
        for optimizer in optimizers:
            optimizer.step()
    moved, wanted = 1 - half.detach().double().mean(), 1 - single.detach().double().mean()
    assert wanted > 1e-3
    assert abs(moved - wanted) < 0.05 * wanted


def test_rounding_differs_by_seed_and_by_place():
    params = [torch.ones(5000, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    first = Lion(params[:2], lr=1e-3, seed=1)
    second = Lion(params[2:], lr=1e-3, seed=2)
    for p in params:
        p.grad = torch.ones_like(p)
    first.step()
    second.step()
    a, b, c = (p.detach() for p in params)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


@all_but_dct
def test_transposed_parameters_and_gradients(kind, generator):
    (p,) = leaves(generator, torch.float32, (70, 80))
    turned = p.detach().mT.requires_grad_()
    (straight,) = copies([p])
    (other,) = copies([p])
    options = {"lr": 0.01, "fused": False}
    one, two, three = kind([turned], lr=0.01), kind([straight], **options), kind([other], lr=0.01)
    for t in range(2):
        pull([straight], t)
        turned.grad = straight.grad.clone().mT
        other.grad = straight.grad.mT.contiguous().mT
        for optimizer in (one, two, three):
            optimizer.step()
    torch.testing.assert_close(other, straight, atol=2e-4, rtol=0)
    if kind in PLAIN:  # the blocks of codes run in the order of the parameter's axes
        torch.testing.assert_close(turned.mT, straight)


@every
def test_complex_parameters_are_refused_by_name(kind):
    with pytest.raises(InputError, match=r"params: want a real floating-point dtype, got torch\.complex64 at 1"):
        kind([torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.complex64, requires_grad=True)])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Lion, {"lr": -1.0}, "lr: want a number >= 0, got -1.0"),
        (Lion, {"betas": (0.9, 1.0)}, r"betas: want two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        (Lion, {"weight_decay": -1.0}, "weight_decay: want a number >= 0"),
        (Lion, {"sparse": "row"}, "sparse: want one of densify, refuse, rows, got 'row'"),
        (EXAdam, {"eps": 0.0}, "eps: want a number > 0, got 0.0"),
        (EXAdam, {"clip": 0.0}, "clip: want a number > 0, got 0.0"),
        (AdamW8bit, {"block": 100}, "block: want one of 64, .*, got 100"),
        (AdamW8bit, {"state_bits": 4}, "state_bits: want 8 or 32, got 4"),
        (SGD8bit, {"momentum": 1.0}, r"momentum: want a number in \[0, 1\), got 1.0"),
        (DCTAdamW, {"rank": 0}, "rank: want a whole number >= 1, got 0"),
        (DCTAdamW, {"gap": 0}, "gap: want a whole number >= 1, got 0"),
        (DCTAdamW, {"error_feedback": "4bit"}, "error_feedback: want one of 8bit, full, none"),
    ],
)
def test_bad_settings_are_named(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind([torch.ones(2, requires_grad=True)], **options)


def test_a_group_that_is_refused_is_not_added():
    optimizer = Lion([torch.ones(2, requires_grad=True)])
    with pytest.raises(InputError, match="lr"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [Lion, AdamW8bit], ids=lambda kind: kind.__name__)
def test_states_of_another_size_are_refused_before_memory_is_touched(kind, generator):
    (small,) = leaves(generator, torch.float32, (5000,))
    optimizer = kind([small])
    run(optimizer, 1)
    small.data = torch.ones(9000)
    small.grad = torch.ones(9000)
    with pytest.raises(InputError, match=r"state: want contiguous .* of 9000 entries on the CPU, got .*\(5000,\)"):
        optimizer.step()


def test_state_dict_of_another_size_is_refused(generator):
    (small,) = leaves(generator, torch.float32, (5,))
    optimizer = Lion([small])
    run(optimizer, 1)
    with pytest.raises(InputError, match=r"state_dict: want exp_avg of shape \(6,\), got \(5,\)"):
        Lion([torch.ones(6, requires_grad=True)]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_fit_by_name_resumes_to_the_same_bits(name, tmp_path):
    assert name in optimizer_names()
    target = torch.sin(torch.arange(4900.0)).reshape(70, 70)

    def start() -> torch.Tensor:
        return torch.zeros(70, 70, requires_grad=True)

    def go(x: torch.Tensor, steps: int, **options: object):
        return fit([x], lambda: (x - target).square().sum(), optimizer=name, lr=0.01, steps=steps, **options)

    straight, resumed = start(), start()
    history = go(straight, 6)
    assert history.loss[-1] < history.loss[0]
    go(resumed, 3, checkpoint=tmp_path / "run.pt")
    again = start()
    go(again, 6, checkpoint=tmp_path / "run.pt")
    assert torch.equal(again, straight)
