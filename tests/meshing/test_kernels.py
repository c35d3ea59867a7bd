"""What is particular to the compiled kernels: threads, forks, memory layouts. Their values stand with the reference."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from diffmatch.meshing import kernels
from diffmatch.meshing.connectivity import connect
from diffmatch.meshing.dual_surface import dual_surface
from diffmatch.meshing.flexicubes import flexicubes
from diffmatch.meshing.grid import Grid

GRID = Grid((9, 7, 8))


def extract(seed):
    """Vertices of a seeded field, and the gradient of their sum by the field."""
    field = torch.randn(GRID.node_shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    mesh = flexicubes(GRID, field, training=True)
    (grad,) = torch.autograd.grad(mesh.vertices.square().sum() + mesh.l_dev, field)
    return mesh.vertices.detach(), mesh.faces, grad


class Extractions(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, item):
        return extract(item)[0]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_worker_can_call_kernels_that_have_run_before():
    wanted = [extract(item)[0] for item in range(3)]
    loader = DataLoader(Extractions(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    for found, vertices in zip(loader, wanted, strict=True):
        assert torch.equal(found, vertices)


def test_threads_can_call_kernels_at_once():
    wanted = [extract(seed) for seed in range(16)]
    with ThreadPoolExecutor(2) as pool:
        for found, reference in zip(pool.map(extract, range(16)), wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))


def test_the_same_input_gives_the_same_bits():
    assert all(torch.equal(a, b) for a, b in zip(extract(3), extract(3), strict=True))


def strided(x):
    """The same values with every second entry of a larger tensor."""
    wide = torch.stack((x, torch.full_like(x, torch.nan)), -1)
    return wide[..., 0]


def test_memory_layout_does_not_matter(generator):
    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    field = noise(1, *GRID.node_shape)
    surface = connect(field)
    k = len(surface.cell)
    weights = [noise(k, 8), noise(k, 12), noise(k)]
    data = [field.flatten()[surface.nodes], GRID.nodes()[surface.nodes], *weights]
    results = []
    for layout in (torch.Tensor.contiguous, strided):
        inputs = [layout(x.clone()).requires_grad_() for x in data]
        connectivity = kernels.connect(layout(field))
        points, deviation = dual_surface(connectivity, *inputs, scale=0.99, centres=True, compiled=True)
        weight = strided(torch.linspace(0, 1, points.numel()).reshape(points.shape))
        loss = (points * weight).sum() + deviation.flip(0).sum()
        results.append([points, deviation, *torch.autograd.grad(loss, inputs)])
    for plain, other in zip(*results, strict=True):
        assert torch.equal(plain, other)


def test_the_incoming_gradient_is_not_written_to():
    field = torch.randn(GRID.node_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mesh = flexicubes(GRID, field, training=True)
    grad = torch.ones_like(mesh.vertices)
    mesh.vertices.backward(grad)
    assert bool((grad == 1).all())


def test_products_that_underflow_divide_nothing_by_zero():
    """The smallest number times a small weight is zero: both ends of the edge vanish."""
    grid = Grid((2, 2, 2))
    field = torch.zeros(grid.node_shape)
    field[1, 1, 1] = -1e-45
    small = torch.full((8, 8), -20.0)  # a weight of 0.01
    for compiled in (False, True):
        inputs = [field.flatten().requires_grad_(), grid.nodes() + 0, small.requires_grad_()]
        settings = {"scale": 0.99, "centres": True, "compiled": compiled}
        points, deviation = dual_surface(connect(field[None]), *inputs, None, None, **settings)
        assert bool(points.isfinite().all())
        grads = torch.autograd.grad(points.sum() + deviation.sum(), [inputs[0], inputs[2]])
        assert all(bool(grad.isfinite().all()) for grad in grads)


def test_large_grids_touch_only_what_carries_the_surface():
    """Zero gradients come as untouched memory; the rows of surface cells alone are written."""
    grid = Grid.cube(24)
    field = grid.nodes().norm(dim=1) - 0.5
    alpha = torch.zeros(grid.n_cells, 8, requires_grad=True)
    mesh = flexicubes(grid, field, alpha=alpha)
    (grad,) = torch.autograd.grad(mesh.vertices.square().sum() + mesh.l_dev, alpha)
    assert set(grad.any(1).nonzero().flatten().tolist()) <= set(mesh.vertex_cell.tolist())
    assert len(mesh.vertex_cell) < grid.n_cells / 5
