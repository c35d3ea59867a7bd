"""Persistence of fields: against the reduction of all boundaries, closed forms, peers; gradients; odd inputs."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.topology import Diagram, Persistence, cubical_persistence, cubical_persistence_batch

CONSTRUCTIONS = ("V", "T")


def points(diagram: Diagram) -> np.ndarray:
    """Finite bars in a fixed order."""
    array = diagram.points().detach().cpu().double().numpy()
    return array[np.lexsort(array.T)]


def assert_same(found: Persistence, wanted: list[tuple[np.ndarray, np.ndarray]]) -> None:
    assert len(found) == len(wanted)
    for diagram, (finite, essential) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(points(diagram), finite)
        np.testing.assert_array_equal(np.sort(diagram.essential_births.double().numpy()), essential)


@st.composite
def fields(draw: st.DrawFn) -> np.ndarray:
    """Small images and volumes, thin ones too, with many ties or none, now and then with masked pixels."""
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 4)] * 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["generic", "few values", "two values", "masked"]))
    if kind == "generic":
        return rng.standard_normal(shape)
    field = rng.integers(-1, 1 if kind == "two values" else 4, shape).astype(float)
    return np.where(rng.random(shape) < 0.3, np.inf, field) if kind == "masked" else field


@given(fields(), st.sampled_from(CONSTRUCTIONS), st.booleans())
def test_bars_are_those_of_the_boundary_reduction(reference, field, construction, superlevel):
    wanted = reference(field, construction)
    tensor = torch.from_numpy(-field if superlevel else field)
    found = cubical_persistence(tensor, construction=construction, superlevel=superlevel)
    if superlevel:
        wanted = [(-finite, np.sort(-essential)) for finite, essential in wanted]
        wanted = [(finite[np.lexsort(finite.T)], essential) for finite, essential in wanted]
    assert_same(found, wanted)
    for diagram in found:
        flat = tensor.reshape(-1)
        assert torch.equal(flat[diagram.birth_index], diagram.births)
        assert torch.equal(flat[diagram.death_index], diagram.deaths)
        assert torch.equal(flat[diagram.essential_index], diagram.essential_births)


@pytest.mark.parametrize("shape", [(40, 31), (64, 64), (13, 12, 11), (20, 20, 20)])
@pytest.mark.parametrize("levels", [None, 5])
def test_equals_gudhi(shape, levels):
    gudhi = pytest.importorskip("gudhi")
    rng = np.random.default_rng(1)
    field = rng.standard_normal(shape) if levels is None else rng.integers(0, levels, shape).astype(float)
    for construction in CONSTRUCTIONS:
        found = cubical_persistence(torch.from_numpy(field), construction=construction)
        peer = gudhi.CubicalComplex(**{"vertices" if construction == "V" else "top_dimensional_cells": field})
        peer.compute_persistence()
        for diagram in found:
            theirs = peer.persistence_intervals_in_dimension(diagram.degree).reshape(-1, 2)
            finite = theirs[np.isfinite(theirs).all(axis=1)]
            np.testing.assert_array_equal(points(diagram), finite[np.lexsort(finite.T)])
            assert len(diagram.essential_births) == len(theirs) - len(finite) == (diagram.degree == 0)


@pytest.mark.parametrize("shape", [(30, 21), (12, 13, 11)])
@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_equals_cripser(shape, construction):
    cripser = pytest.importorskip("cripser")
    field = np.random.default_rng(2).standard_normal(shape)
    found = cubical_persistence(torch.from_numpy(field), construction=construction)
    peer = (cripser.computePH if construction == "V" else cripser.computePH_T)(field, maxdim=len(shape) - 1)
    for diagram in found:
        theirs = peer[(peer[:, 0] == diagram.degree) & (peer[:, 2] < 1e300)][:, 1:3]
        np.testing.assert_allclose(points(diagram), theirs[np.lexsort(theirs.T)], rtol=0, atol=1e-12)


def bars(field: list, degree: int, construction: str) -> tuple[list, list]:
    diagram = cubical_persistence(torch.tensor(field, dtype=torch.float64), construction=construction)[degree]
    return diagram.points().tolist(), diagram.essential_births.tolist()


def test_closed_forms():
    hole = [[0, 0, 0], [0, 5, 0], [0, 0, 0]]
    for construction in CONSTRUCTIONS:
        assert bars(hole, 0, construction) == ([], [0])
        assert bars(hole, 1, construction) == ([[0, 5]], [])
    assert bars([[0, 1], [1, 0]], 0, "V") == ([[0, 1]], [0])
    assert bars([[0, 1], [1, 0]], 0, "T") == ([], [0])
    checkers = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert bars(checkers, 0, "V") == ([[0, 1]] * 4, [0])
    assert bars(checkers, 1, "V") == ([], [])
    assert bars(checkers, 0, "T") == ([], [0])
    mixed = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    assert bars(mixed, 0, "V") == ([[1, 3], [5, 6]], [1])
    assert bars(mixed, 1, "V") == ([], [])
    assert bars(mixed, 0, "T") == ([], [1])
    cavity = np.zeros((3, 3, 3))
    cavity[1, 1, 1] = 2
    assert bars(cavity.tolist(), 2, "V") == ([[0, 2]], [])
    assert bars(cavity.tolist(), 1, "V") == ([], [])


def test_a_slab_of_one_layer_is_an_image(generator):
    image = torch.randn(9, 8, generator=generator)
    for construction in CONSTRUCTIONS:
        wanted = cubical_persistence(image, construction=construction)
        for axis in range(3):
            found = cubical_persistence(image.unsqueeze(axis), construction=construction)
            assert len(found[2]) == 0
            for degree in (0, 1):
                np.testing.assert_array_equal(points(found[degree]), points(wanted[degree]))


@pytest.mark.parametrize("shape", [(11, 7), (5, 7, 4)])
def test_bars_do_not_depend_on_the_order_of_axes_or_on_monotone_maps(shape, generator):
    field = torch.randn(shape, generator=generator, dtype=torch.float64)
    wanted = cubical_persistence(field)
    for axes in itertools.permutations(range(len(shape))):
        for found in (cubical_persistence(field.permute(axes)), cubical_persistence(field.permute(axes).flip(0))):
            for ours, theirs in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(points(ours), points(theirs))
    for ours, theirs in zip(cubical_persistence(field.exp()), wanted, strict=True):
        np.testing.assert_array_equal(points(ours), np.exp(points(theirs)))


@pytest.mark.parametrize("shape", [(16, 16), (9, 9, 9)])
def test_order_of_bars_degrees_and_least_persistence(shape, generator):
    field = torch.randint(0, 6, shape, generator=generator).float()
    full = cubical_persistence(field)
    for diagram in full:
        length, n = diagram.persistence, field.numel()
        code = diagram.birth_index * n + diagram.death_index
        ascending = [(-float(a), int(c)) for a, c in zip(length, code, strict=True)]
        assert ascending == sorted(ascending)
        assert bool((length > 0).all())
    for degrees in ([0], [1], [len(shape) - 1], (1, 0), []):
        found = cubical_persistence(field, degrees=degrees)
        assert found.degrees == tuple(sorted(degrees))
        for diagram in found:
            assert torch.equal(diagram.birth_index, full[diagram.degree].birth_index)
    for ours, theirs in zip(cubical_persistence(field, min_persistence=2.0), full, strict=True):
        assert torch.equal(ours.points(), theirs.filter(2.0).points())
        assert len(ours.essential_births) == len(theirs.essential_births)


@pytest.mark.parametrize("shape", [(5, 4), (3, 3, 3)])
@pytest.mark.parametrize(("construction", "superlevel"), [("V", False), ("T", True)])
def test_gradients(shape, construction, superlevel, generator):
    # Values a step apart: no move of the check's size changes the pairing.
    n = math.prod(shape)
    field = torch.randperm(n, generator=generator).reshape(shape).double().div(n).requires_grad_()

    def sums(x: Tensor) -> tuple[Tensor, ...]:  # bars of equal length may change places, sums do not mind
        found = cubical_persistence(x, construction=construction, superlevel=superlevel)
        return tuple(e.sum() for d in found for e in (d.births**2, d.deaths**3, d.essential_births.sin()))

    assert torch.autograd.gradcheck(sums, field)
    assert torch.autograd.gradgradcheck(sums, field)
    found = cubical_persistence(field, construction=construction, superlevel=superlevel)
    (grad,) = torch.autograd.grad(sum(d.persistence.sum() for d in found), field)
    wanted = torch.zeros(n, dtype=torch.float64)
    for d in found:
        wanted.index_add_(0, d.death_index, torch.full((len(d),), -1.0 if superlevel else 1.0, dtype=torch.float64))
        wanted.index_add_(0, d.birth_index, torch.full((len(d),), 1.0 if superlevel else -1.0, dtype=torch.float64))
    assert torch.equal(grad.reshape(-1), wanted)
    assert float(grad.sum()) == 0.0


def test_of_a_plateau_one_pixel_moves():
    field = torch.zeros(5, 5)
    field[2], field[:, 2] = 1.0, 1.0  # four flat basins
    field.requires_grad_()
    diagram = cubical_persistence(field)[0]
    assert diagram.points().tolist() == [[0.0, 1.0]] * 3
    diagram.persistence.sum().backward()
    assert sorted(field.grad[field.grad != 0].tolist()) in ([-1, -1, -1, 1, 2], [-1, -1, -1, 1, 1, 1], [-1, -1, -1, 3])


@pytest.mark.parametrize("shape", [(4, 12, 9), (3, 6, 5, 4), (0, 3, 3), (2, 0, 3)])
def test_batch_equals_loop(shape, generator):
    fields = torch.randn(shape, generator=generator).requires_grad_()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = cubical_persistence_batch(fields)
    finally:
        torch.set_num_threads(threads)
    apart = [cubical_persistence(field) for field in fields]
    assert len(together) == len(apart) == shape[0]
    for ours, theirs in zip(together, apart, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for name in ("birth_index", "death_index", "essential_index", "births", "deaths", "essential_births"):
                assert torch.equal(getattr(a, name), getattr(b, name))
    if shape[0]:
        grads = [
            torch.autograd.grad(sum(d.points().square().sum() for p in x for d in p), fields) for x in (together, apart)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_has_the_same_bars(dtype, generator):
    field = torch.randn(12, 10, generator=generator).to(dtype)
    found, wanted = cubical_persistence(field), cubical_persistence(field.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.births.dtype == dtype
        np.testing.assert_array_equal(points(ours), points(theirs))


@pytest.mark.parametrize("construction", CONSTRUCTIONS)
def test_odd_fields(construction):
    for shape in ((3, 4), (2, 3, 4), (1, 1), (1, 1, 1)):
        constant = cubical_persistence(torch.full(shape, 2.0), construction=construction)
        assert all(len(d) == 0 for d in constant)
        assert constant[0].essential_births.tolist() == [2.0]
        never = cubical_persistence(torch.full(shape, math.inf), construction=construction)
        assert all(len(d) == len(d.essential_births) == 0 for d in never)
    for shape in ((0, 4), (4, 0), (0, 0, 0), (2, 0, 3)):
        field = torch.zeros(shape, requires_grad=True)
        empty = cubical_persistence(field, construction=construction)
        assert empty.degrees == tuple(range(len(shape)))
        assert all(len(d) == len(d.essential_births) == 0 and d.points().shape == (0, 2) for d in empty)
        sum(d.persistence.sum() for d in empty).backward()
        assert field.grad.shape == shape
    apart = torch.tensor([[0.0, math.inf, 1.0], [0.5, math.inf, 3.0]], requires_grad=True)
    found = cubical_persistence(apart, construction=construction)
    assert found[0].essential_births.tolist() == [0.0, 1.0]
    ring = torch.zeros(3, 3)
    ring[1, 1] = math.inf
    assert cubical_persistence(ring, construction=construction)[1].essential_births.tolist() == [0.0]
    flipped = cubical_persistence(-ring, construction=construction, superlevel=True)
    assert flipped[1].essential_births.tolist() == [0.0]


def test_signs_of_zero_are_a_tie():
    found = cubical_persistence(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]))
    assert len(found[0]) == 0


@pytest.mark.untyped
def test_refusals():
    good = torch.zeros(3, 3)
    cases = [
        ((torch.zeros(3),), {}, "field: want shape"),
        ((torch.zeros(2, 2, 2, 2),), {}, "field: want shape"),
        (([[0.0]],), {}, "field: want a tensor"),
        ((torch.zeros(3, 3, dtype=torch.int64),), {}, "field: want a real floating-point dtype"),
        ((torch.zeros(1, 1).expand(1 << 14, 1 << 14),), {}, r"field: want less than 2\^28 pixels"),
        ((torch.tensor([[0.0, math.nan]]),), {}, "field: want no NaN, got 1 of 2 entries NaN, the first at 1"),
        ((torch.tensor([[0.0, -math.inf]]),), {}, "field: want no -inf in a sublevel filtration, got 1 of 2"),
        ((torch.tensor([[0.0, math.inf]]),), {"superlevel": True}, r"field: want no \+inf in a superlevel"),
        ((good,), {"degrees": (2,)}, r"degrees: want integers from 0 to 1, got \(2,\)"),
        ((good,), {"construction": "v"}, "construction: want one of T, V, got 'v'"),
        ((good,), {"pairing": "gpu"}, "pairing: want one of parallel, sweep"),
        ((good,), {"min_persistence": -1.0}, "min_persistence: want a number >= 0"),
        ((torch.zeros(2, 2, 2),), {"pairing": "parallel"}, "degrees: want 0 and 2 with the parallel pairing"),
    ]
    for args, options, message in cases:
        with pytest.raises(InputError, match=message):
            cubical_persistence(*args, **options)
    with pytest.raises(InputError, match=r"fields: want shape \(b, nx, ny\)"):
        cubical_persistence_batch(good)
    with pytest.raises(InputError, match="degree: want one of 0, as computed, got 1"):
        cubical_persistence(good, degrees=[0])[1]
