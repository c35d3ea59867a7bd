"""Signed measures of images: labelling at every pair of levels, the peer, gradients, and the edges of the domain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from diffmatch.errors import InputError
from diffmatch.topology.multiparameter import image_signed_measure
from diffmatch.topology.multiparameter.axes import make_axes
from diffmatch.topology.multiparameter.events import cell_events, graph_events_by_tensors
from diffmatch.topology.multiparameter.images import _cell_levels, _neighbours
from diffmatch.topology.multiparameter.measure import collect

CORNERS = np.ones((3, 3))
DEGREES = (0, 1, None)


def labelled(field, first, second, degree, construction):
    """Components and holes of the set of pixels at every pair of levels, by labelling."""
    table = torch.empty(len(first), len(second), dtype=torch.int64)
    foreground, background = (None, CORNERS) if construction == "V" else (CORNERS, None)
    for i, s in enumerate(first.tolist()):
        for j, t in enumerate(second.tolist()):
            inside = (field[0].numpy() <= s) & (field[1].numpy() <= t)
            h0 = ndimage.label(inside, foreground)[1]
            h1 = ndimage.label(np.pad(~inside, 1, constant_values=True), background)[1] - 1
            table[i, j] = {0: h0, 1: h1, None: h0 - h1}[degree]
    return table


def random_field(seed, shape, values):
    rng = np.random.default_rng(seed)
    field = rng.random((2, *shape)) if values == 0 else rng.integers(0, values, (2, *shape)).astype(float)
    return torch.from_numpy(field)


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([0, 2, 5]),
    st.sampled_from(DEGREES),
    st.sampled_from("VT"),
)
def test_every_value_as_a_level(seed, shape, values, degree, construction):
    field = random_field(seed, shape, values)
    measure = image_signed_measure(field, degree=degree, construction=construction)
    first, second = field[0].unique(), field[1].unique()
    assert torch.equal(measure.at(first, second), labelled(field, first, second, degree, construction))
    assert bool((measure.weights != 0).all())


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("degree", DEGREES)
def test_given_levels_and_quantiles(degree, construction):
    field = random_field(1, (9, 13), 0)
    levels = torch.linspace(0.1, 0.9, 5).double(), torch.linspace(0.2, 1.0, 7).double()
    measure = image_signed_measure(field, degree=degree, levels=levels, construction=construction)
    assert torch.equal(measure.at(*levels), labelled(field, *levels, degree, construction))
    exact = image_signed_measure(field, degree=degree, construction=construction).round_up(*levels)
    assert torch.equal(exact.points, measure.points)
    assert torch.equal(exact.weights, measure.weights)
    few = image_signed_measure(field, degree=degree, levels=6, construction=construction)
    used = [few.points[:, k].unique() for k in (0, 1)]
    assert all(len(u) <= 6 and torch.isin(u, field[k]).all() for k, u in enumerate(used))
    last = field.reshape(2, -1).amax(1)
    assert torch.equal(few.at(used[0], used[1]), labelled(field, used[0], used[1], degree, construction))
    assert few.weights.sum() == labelled(field, last[:1], last[1:], degree, construction)[0, 0]


@pytest.mark.parametrize("construction", ["V", "T"])
@pytest.mark.parametrize("levels", [None, 5])
def test_tensor_operations_give_the_same_measure(construction, levels):
    field = random_field(2, (7, 10), 0)
    field[0, 0, 3] = torch.inf
    diagonal = construction == "T"
    x, y = make_axes("field", field.reshape(2, -1), levels)
    size, pixels = (x.size, y.size), torch.arange(70).reshape(7, 10)
    ends = torch.cat([torch.stack((u.reshape(-1), v.reshape(-1))) for u, v in _neighbours(pixels, diagonal)], 1)
    events = graph_events_by_tensors(x.index, y.index, ends, size)
    cells = zip(*(_cell_levels(axis.index.reshape(7, 10), diagonal) for axis in (x, y)), strict=True)
    euler = [cell_events(a, b, sign, size) for (sign, a), (_, b) in cells]
    for degree, parts in ((0, [events]), (None, euler)):
        codes, weights = collect([c for c, _ in parts], [w for _, w in parts], size)
        swept = image_signed_measure(field, degree=degree, levels=levels, construction=construction)
        points = torch.stack((x.coordinates(codes // size[1]), y.coordinates(codes % size[1])), 1)
        assert torch.equal(points, swept.points)
        assert torch.equal(weights, swept.weights)


def test_the_example_that_is_done_by_hand():
    """Two pixels that enter at (0, 1) and (1, 0), joined at (1, 1)."""
    field = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    measure = image_signed_measure(field)
    assert measure.points.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert measure.weights.tolist() == [1, 1, -1]
    assert len(image_signed_measure(field, degree=1)) == 0


def test_a_frame_has_a_loop_until_its_middle_comes():
    field = torch.zeros(2, 3, 3)
    field[0, 1, 1], field[1, 1, 1] = 2.0, 3.0
    measure = image_signed_measure(field, degree=1)
    # With levels (0, 0) alone there is a loop; it is filled once both functions have reached the middle.
    assert measure.at(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 3.0])).tolist() == [[1, 1], [1, 0]]


def test_transposed_and_swapped():
    field = random_field(3, (5, 8), 0)
    one = image_signed_measure(field)
    turned = image_signed_measure(field.mT)
    assert torch.equal(one.points, turned.points)
    swapped = image_signed_measure(field.flip(0))
    grid = torch.linspace(0, 1, 9).double()
    assert torch.equal(one.at(grid, grid), swapped.at(grid, grid).T)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("levels", [None, 4])
def test_gradcheck(degree, levels):
    field = random_field(4, (5, 6), 0).requires_grad_()

    def loss(x):
        return image_signed_measure(x, degree=degree, levels=levels).integrate(lambda p: p[:, 0].exp() * p[:, 1].sin())

    assert torch.autograd.gradcheck(loss, (field,))
    assert torch.autograd.gradgradcheck(loss, (field,))


def test_gradients_of_given_levels_reach_the_levels():
    field = random_field(4, (5, 6), 0).requires_grad_()
    levels = tuple(torch.linspace(0.2, 1, 4).double().requires_grad_() for _ in range(2))
    image_signed_measure(field, levels=levels).integrate(lambda p: p.square().sum(1)).backward()
    assert field.grad is None
    assert levels[0].grad.abs().sum() > 0


def test_tied_minima_each_receive_their_gradient():
    field = torch.ones(2, 1, 3, dtype=torch.float64)
    field[:, 0, 0] = field[:, 0, 2] = 0.0
    field.requires_grad_()
    image_signed_measure(field).integrate(lambda p: p.sum(1)).backward()
    assert field.grad[:, 0].tolist() == [[1, -1, 1]] * 2


def test_constant_empty_single_and_masked_fields():
    constant = image_signed_measure(torch.full((2, 3, 4), 0.5))
    assert (constant.points.tolist(), constant.weights.tolist()) == ([[0.5, 0.5]], [1])
    assert len(image_signed_measure(torch.full((2, 3, 4), 0.5), degree=1)) == 0
    for shape in ((2, 0, 3), (2, 0, 0)):
        empty = image_signed_measure(torch.zeros(shape, requires_grad=True))
        assert len(empty) == 0
        empty.integrate(lambda p: p.sum(1)).backward()
    single = image_signed_measure(torch.tensor([[[1.0]], [[2.0]]]), levels=1)
    assert single.points.tolist() == [[1, 2]]
    never = torch.full((2, 2, 2), torch.inf)
    for levels in (None, 3, (torch.tensor([0.0, torch.inf]), torch.tensor([0.0]))):
        assert len(image_signed_measure(never, levels=levels, degree=None)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_kept(dtype):
    field = random_field(5, (4, 5), 0).to(dtype)
    levels = (torch.linspace(0, 1, 4).to(dtype),) * 2
    for given_levels in (None, 3, levels):
        measure = image_signed_measure(field, levels=given_levels)
        assert measure.points.dtype == dtype
        wide = given_levels if given_levels is not levels else tuple(level.double() for level in levels)
        assert torch.equal(measure.points.double(), image_signed_measure(field.double(), levels=wide).points)


@pytest.mark.untyped
def test_messages():
    field = torch.zeros(2, 3, 3)
    with pytest.raises(InputError, match="field"):
        image_signed_measure(torch.zeros(3, 3, 3))
    with pytest.raises(InputError, match="floating"):
        image_signed_measure(torch.zeros(2, 3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="degree"):
        image_signed_measure(field, degree=2)
    with pytest.raises(InputError, match="construction"):
        image_signed_measure(field, construction="W")
    for levels in (0, 2.5, (torch.tensor([1.0, 0.0]),) * 2, (torch.tensor([1.0]),)):
        with pytest.raises(InputError, match="levels"):
            image_signed_measure(field, levels=levels)
    for bad in (torch.nan, -torch.inf):
        field[1, 1, 1] = bad
        with pytest.raises(InputError, match=r"field: .* at 13"):
            image_signed_measure(field)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.filterwarnings("ignore")
def test_the_peer_agrees_on_square_images(degree):
    """Only on square ones: multipers 2.3.2 reads others in another order of the axes."""
    multipers = pytest.importorskip("multipers")
    field = random_field(6, (8, 8), 6)
    slicer = multipers.filtrations.Cubical(field.permute(1, 2, 0).contiguous().numpy())
    invariant = "euler" if degree is None else "hilbert"
    points, weights = multipers.signed_measure(slicer, degree=degree, invariant=invariant, n_jobs=1)[0]
    grid = torch.arange(6, dtype=torch.float64)
    inside = (torch.as_tensor(points)[:, None, None] <= torch.cartesian_prod(grid, grid).reshape(6, 6, 2)).all(-1)
    theirs = (inside * torch.as_tensor(weights).long()[:, None, None]).sum(0)
    assert torch.equal(image_signed_measure(field, degree=degree).at(grid, grid), theirs)
