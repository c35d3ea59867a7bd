import pytest
import torch

from diffmatch.optim.krylov import Krylov


def system(n: int, *, lowest: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = basis * torch.linspace(lowest, 10.0, n, dtype=torch.float64) @ basis.T
    return matrix, torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_one_basis_solves_for_every_shift(n):
    matrix, right = system(n)
    krylov = Krylov(lambda v: matrix @ v, right, limit=100)
    krylov.extend(0.5, 0.0)
    assert krylov.products <= n
    krylov.release()
    for shift in (0.5, 1.0, 8.0):
        exact = torch.linalg.solve(matrix + shift * torch.eye(n, dtype=torch.float64), -right)
        torch.testing.assert_close(krylov.solve(shift), exact)


def test_stops_at_the_tolerance_or_the_limit():
    matrix, right = system(60)
    krylov = Krylov(lambda v: matrix @ v, right, limit=100)
    krylov.extend(1.0, 1e-3)
    residual = (matrix + torch.eye(60, dtype=torch.float64)) @ krylov.solve(1.0) + right
    assert float(residual.norm()) <= 1.001e-3 * float(right.norm())
    assert krylov.products < 60
    short = Krylov(lambda v: matrix @ v, right, limit=4)
    short.extend(1.0, 0.0)
    assert short.products == 4


def test_an_invariant_space_ends_the_basis():
    right = torch.tensor([0.0, 3.0, 0.0], dtype=torch.float64)
    krylov = Krylov(lambda v: 2 * v, right, limit=3)
    krylov.extend(1.0, 0.0)
    assert krylov.products == 1
    torch.testing.assert_close(krylov.solve(1.0), -right / 3)


def test_indefinite_matrices_are_lifted():
    matrix, right = system(5, lowest=-4.0)
    krylov = Krylov(lambda v: matrix @ v, right, limit=5)
    krylov.extend(0.5, 0.0)
    exact = torch.linalg.solve(matrix + 4.5 * torch.eye(5, dtype=torch.float64), -right)
    torch.testing.assert_close(krylov.solve(0.5), exact)
    assert float(krylov.solve(0.5) @ right) < 0
