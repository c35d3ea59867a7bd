"""Index pairs of degree 0 and of the top degree by tensor operations alone, on any device.

All components of a grid look for the lowest edge that leaves them, and those that it leads to an older component end
there, at once; then the edges between joined components are dropped, and so on. The pairs are those of the elder rule,
whatever the order ("peak pruning"): a component that ends along its lowest outgoing edge is inside the sublevel set of
that edge up to the older component. Rounds are few on real data, as many as there are components at worst.

A batch is one graph without edges between its fields.
"""

import itertools

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["parallel_pairs"]


def parallel_pairs(ascending: Tensor, *, degree: int, outside_low: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (lower end, upper end) of each field, pairs of equal values included; waits for the device in every round.

    Args:
        ascending: values of a sublevel filtration (V-construction), without NaN, shape (b, \\*shape) of two or three
            axes; at least one pixel.
        degree: 0, or the top degree, which is the number of axes less one.
        outside_low: the outside lies below all pixels instead of above them (see :mod:`.plane`).

    Returns:
        for each pair the number of the field, and the flat numbers of the pixels at its lower and upper end, each
        of shape (p,), int64.
    """
    downward = degree > 0
    rank = _ranks(ascending, downward=downward)
    batch, n = rank.shape
    has_outside = outside_low != downward
    # Nodes: the pixels of all fields, and, numbered behind them, the outside of each field, which is the oldest.
    outside = torch.arange(batch, device=rank.device)
    age = rank + outside[:, None] * (n + 1) + 1 if has_outside else rank + outside[:, None] * n
    age = age.reshape(-1)
    if has_outside:
        age = torch.cat((age, outside * (n + 1)))
    vertex_of = torch.empty_like(age)
    vertex_of[age] = torch.arange(len(age), device=age.device)
    edges = _edges(ascending.shape, has_outside=has_outside, diagonal=downward, device=age.device)
    younger, merge = elder_pairs(age[edges], len(age))
    born, dead = vertex_of[younger], vertex_of[merge]
    first, last = (dead, born) if downward else (born, dead)
    return born // n, first % n, last % n


def _ranks(ascending: Tensor, *, downward: bool) -> Int[Tensor, "b n"]:
    """Places of pixels in the order of (value, index), reversed for a downward sweep."""
    flat = ascending.reshape(len(ascending), -1)
    order = flat.sort(dim=1, stable=True).indices
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    if downward:
        places = places.flip(1)
    return torch.empty_like(order).scatter_(1, order, places)


def _edges(shape: torch.Size, *, has_outside: bool, diagonal: bool, device: torch.device) -> Int[Tensor, "2 e"]:
    """Pairs of neighbouring nodes, through faces or through corners; the outside is a neighbour along the border."""
    batch, *sizes = shape
    n = batch * torch.Size(sizes).numel()
    nodes = torch.arange(n, device=device).reshape(shape)
    pairs = []
    for step in itertools.product((-1, 0, 1), repeat=len(sizes)):
        if step <= (0,) * len(sizes) or (not diagonal and sum(map(abs, step)) > 1):
            continue
        low, high = nodes, nodes
        for axis, by in enumerate(step, start=1):
            size = max(shape[axis] - abs(by), 0)
            low = low.narrow(axis, 1 if by < 0 else 0, size) if by else low
            high = high.narrow(axis, 1 if by > 0 else 0, size) if by else high
        pairs.append(torch.stack((low.reshape(-1), high.reshape(-1))))
    if has_outside:
        outside = n + torch.arange(batch, device=device)
        for axis, end in itertools.product(range(1, len(shape)), (0, -1)):
            border = nodes.select(axis, end).reshape(batch, -1)
            pairs.append(torch.stack((outside[:, None].expand_as(border).reshape(-1), border.reshape(-1))))
    return torch.cat(pairs, dim=1)


def elder_pairs(edges: Int[Tensor, "2 e"], n: int) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Pairs of the elder rule on a graph: the age of each vertex whose component ends, and that of where it ends.

    Args:
        edges: vertices named by their ages, the oldest being 0; shape (2, e).
        n: number of vertices.
    """
    vertices = torch.arange(n, device=edges.device)
    # Each vertex points to its oldest neighbour, if that is older, and so on down to a local minimum.
    basin = vertices.scatter_reduce(0, edges.max(dim=0).values, edges.min(dim=0).values, "amin")
    basin = _roots(basin)
    born, merged = [], []
    weight = edges.max(dim=0).values
    ends, weight = _lowest_edges(basin[edges], weight, n)
    while len(weight):
        number = torch.arange(len(weight), device=edges.device)
        cost = weight * len(weight) + number
        lowest = torch.full((n,), torch.iinfo(torch.int64).max, device=edges.device)
        lowest.scatter_reduce_(0, ends.reshape(-1), cost.repeat(2), "amin")
        ending = lowest[ends[1]] == cost  # ends are (older, younger)
        born.append(ends[1][ending])
        merged.append(weight[ending])
        target = vertices.clone()
        target[ends[1][ending]] = ends[0][ending]
        ends, weight = _lowest_edges(_roots(target)[ends], weight, n)
    none = edges.new_empty(0)
    return torch.cat([none, *born]), torch.cat([none, *merged])


def _roots(pointer: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Follow pointers to the end, twice as far in every round."""
    while True:
        further = pointer[pointer]
        if torch.equal(further, pointer):
            return pointer
        pointer = further


def _lowest_edges(
    ends: Int[Tensor, "2 e"], weight: Int[Tensor, " e"], n: int
) -> tuple[Int[Tensor, "2 p"], Int[Tensor, " p"]]:
    """Of the edges between each two components the lowest, as (older, younger); none inside a component."""
    older, younger = ends.min(dim=0).values, ends.max(dim=0).values
    between = older != younger
    codes, place = (older[between] * n + younger[between]).unique(return_inverse=True)
    lowest = torch.full_like(codes, n).scatter_reduce_(0, place, weight[between], "amin")
    return torch.stack((codes // n, codes % n)), lowest
