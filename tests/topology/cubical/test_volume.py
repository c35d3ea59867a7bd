"""The gradients of neighbourhoods in a volume, and larger fields against union-find alone."""

import numpy as np
import torch

from diffmatch.topology import betti_numbers, cubical_persistence
from diffmatch.topology.cubical import volume


def test_gradient_words_describe_spanning_forests():
    words, cycles = volume.link_tables()
    rng = np.random.default_rng(0)
    for _ in range(300):
        edges = int(rng.integers(64))
        squares = [i for i, (a, b) in enumerate(volume._SIDES) if edges >> a & edges >> b & 1 and rng.random() < 0.5]
        link = edges | sum(1 << 6 + i for i in squares)
        seen, n_critical = {(edges & -edges).bit_length() - 1}, 0
        for i in range(5):
            entry = int(words[link]) >> 6 * i & 63
            if entry == 63:
                break
            edge, parent = entry & 7, entry >> 3
            assert edge not in seen
            if parent == edge:
                n_critical += 1
            else:  # a square spans the two, and the parent is older
                assert parent in seen
                assert tuple(sorted((edge, parent))) in [volume._SIDES[s] for s in squares]
            seen.add(edge)
        if edges:
            assert len(seen) == bin(edges).count("1")
            assert bool(words[link] >> 30 & 1) == (n_critical > 0)
            assert cycles[link] == len(squares) - len(seen) + 1 + n_critical


def test_betti_numbers_of_all_levels(generator):
    field = torch.nn.functional.avg_pool3d(torch.randn(1, 1, 32, 31, 30, generator=generator), 3, 1)[0, 0]
    for construction in ("V", "T"):
        found = cubical_persistence(field, construction=construction)
        for level in torch.linspace(-0.6, 0.6, 7).tolist():
            assert found.betti(level) == betti_numbers(field, level=level, construction=construction)


def test_each_field_has_as_many_critical_edges_as_squares(generator):
    # The box has no loops: with ties broken by index, every loop that begins ends. Distinct values make all bars show.
    field = torch.randperm(20**3, generator=generator).reshape(20, 20, 20).float()
    diagram = cubical_persistence(field, degrees=[1])[1]
    assert len(diagram.essential_births) == 0
    assert bool((diagram.deaths > diagram.births).all())


def test_a_long_column_grows_the_store():
    # Nested shells of alternating height: loops of many edges, which the columns have to hold.
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 33)] * 3, indexing="ij")
    noise = torch.rand(33, 33, 33, generator=torch.Generator().manual_seed(1))
    field = torch.stack(axes).norm(dim=0) + 1e-3 * noise
    found = cubical_persistence(field.double())
    assert [len(d.essential_births) for d in found] == [1, 0, 0]
    level = 0.5
    assert found.betti(level) == betti_numbers(field.double(), level=level)
