import pytest
import torch

from diffmatch.snapshots import MovingAverage, Snapshot


def test_snapshot_brings_back_what_was_taken(generator, device, dtype):
    params = [torch.randn(s, generator=generator, device=device).to(dtype).requires_grad_() for s in ((3, 2), (), (0,))]
    snapshot, before = Snapshot(params), [p.detach().clone() for p in params]
    snapshot.take()
    with torch.no_grad():
        for p in params:
            p.fill_(7)
    snapshot.restore()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert all(p.requires_grad and p.is_leaf for p in params)


def test_snapshot_that_was_never_taken_changes_nothing():
    x = torch.ones(3, requires_grad=True)
    Snapshot([x]).restore()
    assert torch.equal(x, torch.ones(3))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_is_the_weighted_mean_of_all_values(generator, decay):
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    average = MovingAverage([x], decay=decay)
    for value in values:
        with torch.no_grad():
            x.copy_(value)
        average.update()
    weights = decay ** torch.arange(6, -1, -1, dtype=torch.float64)
    average.apply()
    torch.testing.assert_close(x.detach(), (weights / weights.sum()) @ values)


def test_average_of_nothing_changes_nothing():
    x = torch.ones(3, requires_grad=True)
    MovingAverage([x], decay=0.9).apply()
    assert torch.equal(x, torch.ones(3))
