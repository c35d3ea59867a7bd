"""What the optimizers that differentiate twice share: flat memory, and the last good state after a NaN."""

import gc
import resource
import sys
from pathlib import Path

import pytest
import torch

from diffmatch import fit
from diffmatch.optim import optimizer_names

TWICE = ("adahessian", "newton", "sophia-g", "sophia-h")


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel tells the resident set on Linux")
@pytest.mark.parametrize("name", TWICE)
def test_memory_is_flat_over_200_steps_without_the_garbage_collector(name):
    """One tensor of the parameter's size kept in each step would take four times the limit."""
    x = torch.linspace(0.5, 1.5, 20_000, requires_grad=True)
    options = {"k": 1} if name != "newton" else {"max_products": 3}
    seen = []
    gc.collect()
    gc.disable()
    try:
        fit(
            [x],
            lambda: (x**4).mean() + x.roll(1).mul(x).mean(),
            optimizer=name,
            optimizer_options=options,
            lr=1e-3,
            steps=200,
            callbacks=[lambda state: seen.append(resident())],
        )
    finally:
        gc.enable()
    assert len(seen) == 200
    assert max(seen[100:]) - max(seen[20:60]) < 2**21


@pytest.mark.parametrize("name", optimizer_names())
def test_a_gradient_that_is_nan_stops_at_the_last_good_state(name):
    """The loss stays finite; its gradient at step 4 does not."""
    x, y = (torch.full((70, 2), 2.0, requires_grad=True) for _ in range(2))
    starts = []

    def loss(step: int) -> torch.Tensor:
        starts.append(x.detach().clone())
        steep = (y - y.detach()).abs().sqrt().sum()  # 0, with a slope of 0 times infinity
        return (x - 1).pow(4).sum() + (steep if step == 4 else 0 * y.sum())

    history = fit([x, y], loss, optimizer=name, steps=9)
    assert (history.status, history.steps) == ("diverged", 4)
    assert "gradient of parameter 1" in history.message
    assert any(torch.equal(x, start) for start in starts)
    assert (x.detach() - 1).pow(4).sum() <= (starts[0] - 1).pow(4).sum()
