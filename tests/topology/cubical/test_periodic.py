"""Grids with axes closed to rings: against gudhi, grids without rings, tori, rolled fields; gradients; messages."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmatch.errors import InputError
from diffmatch.topology import cubical_persistence, cubical_persistence_batch


@st.composite
def cases(draw):
    """A small field, some rings, a construction."""
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 6)] * 2), st.tuples(*[st.integers(1, 4)] * 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    field = rng.integers(0, 4, shape).astype(float) if draw(st.booleans()) else rng.standard_normal(shape)
    rings = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
    return torch.from_numpy(field), rings, draw(st.sampled_from(["V", "T"]))


def readable(found):
    return {d.degree: (sorted(d.points().tolist()), sorted(d.essential_births.tolist())) for d in found}


@given(cases())
def test_equals_gudhi(case):
    gudhi = pytest.importorskip("gudhi")
    field, rings, construction = case
    name = "vertices" if construction == "V" else "top_dimensional_cells"
    theirs = gudhi.PeriodicCubicalComplex(periodic_dimensions=rings, **{name: field.numpy()})
    theirs.compute_persistence()
    found = cubical_persistence(field, periodic=rings, construction=construction)
    flat = field.reshape(-1)
    for diagram in found:
        bars = theirs.persistence_intervals_in_dimension(diagram.degree).reshape(-1, 2)
        finite = np.isfinite(bars[:, 1])
        assert readable([diagram])[diagram.degree] == (sorted(bars[finite].tolist()), sorted(bars[~finite, 0].tolist()))
        assert torch.equal(flat[diagram.birth_index], diagram.births)
        assert torch.equal(flat[diagram.death_index], diagram.deaths)
        assert torch.equal(flat[diagram.essential_index], diagram.essential_births)
    assert found.degrees == tuple(range(field.ndim + all(rings)))


@given(cases(), st.integers(0, 6))
def test_rolling_along_a_ring_changes_no_bar(case, by):
    field, rings, construction = case
    axes = [axis for axis, ring in enumerate(rings) if ring]
    rolled = field.roll([by] * len(axes), axes) if axes else field
    first, second = (cubical_persistence(x, periodic=rings, construction=construction) for x in (field, rolled))
    assert readable(first) == readable(second)


@pytest.mark.parametrize("shape", [(20, 17), (7, 8, 6)])
@pytest.mark.parametrize("construction", ["V", "T"])
def test_a_wall_opens_a_ring(generator, shape, construction):
    """Behind pixels that never appear a ring is as good as open."""
    field = torch.randn(shape, generator=generator, dtype=torch.float64)
    walled = torch.nn.functional.pad(field, (0, 1) * len(shape), value=math.inf)
    open_grid = readable(cubical_persistence(walled, construction=construction))
    for rings in ([True] * len(shape), [True] + [False] * (len(shape) - 1)):
        found = readable(cubical_persistence(walled, construction=construction, periodic=rings))
        assert {k: v for k, v in found.items() if k < len(shape)} == open_grid


@pytest.mark.parametrize("construction", ["V", "T"])
def test_tori(construction):
    for n_axes, n_rings in itertools.product((2, 3), (1, 2, 3)):
        if n_rings > n_axes:
            continue
        rings = [True] * n_rings + [False] * (n_axes - n_rings)
        found = cubical_persistence(torch.ones((4, 3, 5)[:n_axes]), periodic=rings, construction=construction)
        wanted = [math.comb(n_rings, d.degree) for d in found]
        assert [len(d.essential_births) for d in found] == wanted
        assert all(len(d) == 0 for d in found)


def test_gradients_superlevels_and_batches(generator):
    fields = torch.randperm(2 * 30, generator=generator).double().div(60).reshape(2, 6, 5).requires_grad_()

    def sums(x):
        found = cubical_persistence_batch(x, periodic=True, superlevel=True)
        return tuple(e.sum() for p in found for d in p for e in (d.births**2, d.deaths**3, d.essential_births.sin()))

    assert torch.autograd.gradcheck(sums, fields)
    both = cubical_persistence_batch(fields, periodic=(True, False))
    assert [readable(p) for p in both] == [readable(cubical_persistence(f, periodic=(True, False))) for f in fields]
    upper, lower = (
        cubical_persistence(fields[0], periodic=True, superlevel=True),
        cubical_persistence(-fields[0], periodic=True),
    )
    for ours, theirs in zip(upper, lower, strict=True):
        assert torch.equal(ours.births, -theirs.births)
        assert torch.equal(ours.essential_births, -theirs.essential_births)


def test_odd_inputs():
    nothing = cubical_persistence(torch.zeros(0, 3), periodic=True)
    assert [len(d.essential_births) for d in nothing] == [0, 0, 0]
    masked = cubical_persistence(torch.full((2, 2), math.inf), periodic=True)
    assert [len(d.essential_births) for d in masked] == [0, 0, 0]
    assert cubical_persistence(torch.eye(3), periodic=True, degrees=[2]).degrees == (2,)


@pytest.mark.untyped
def test_messages():
    field = torch.zeros(3, 3)
    with pytest.raises(InputError, match="periodic: want a bool, or 2 of them"):
        cubical_persistence(field, periodic=(True,))
    with pytest.raises(InputError, match="pairing: want 'sweep' for periodic grids"):
        cubical_persistence(field, periodic=True, pairing="parallel", degrees=[0])
    with pytest.raises(InputError, match="degrees: want integers from 0 to 1"):
        cubical_persistence(field, periodic=(True, False), degrees=[2])
