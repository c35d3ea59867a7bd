"""Signed measures of complexes whose cells enter at pairs of levels, degree by degree."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from diffmatch.topology.cubical.parallel import elder_pairs
from diffmatch.topology.multiparameter.kernels import component_events

__all__ = ["Events", "cell_events", "graph_events", "graph_events_by_tensors", "negated"]

Events = tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
"""Codes of levels and weights, which may still cancel."""


def negated(events: Events) -> Events:
    """The measure with the opposite weights."""
    return events[0], -events[1]


def graph_events(
    vertices: tuple[np.ndarray, np.ndarray],
    ends: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray],
    size: tuple[int, int],
) -> Events:
    """Degree 0 of a graph by a compiled sweep.

    Args:
        vertices: level of each vertex on both axes.
        ends: vertices of the edges, shape (m, 2).
        edges: level of each edge on both axes.
        size: number of levels on each axis, which as a level means never.
    """
    codes, weights = component_events(*vertices, ends, *edges, size)
    return torch.from_numpy(codes), torch.from_numpy(weights)


def cell_events(first: Int[Tensor, " c"], second: Int[Tensor, " c"], sign: int, size: tuple[int, int]) -> Events:
    """What cells of one dimension add to the Euler characteristic.

    Args:
        first: level of each cell on the first axis.
        second: level on the second axis.
        sign: 1 for an even dimension, -1 for an odd one.
        size: number of levels on each axis, which as a level means never.
    """
    enters = (first < size[0]) & (second < size[1])
    codes = first[enters].long() * size[1] + second[enters].long()
    return codes, torch.full_like(codes, sign)


def graph_events_by_tensors(
    first: Int[Tensor, " n"], second: Int[Tensor, " n"], ends: Int[Tensor, "2 m"], size: tuple[int, int]
) -> Events:
    """Degree 0 of a graph whose edges enter with their vertices, on any device: all slices as one graph.

    Needs memory for each pair of a vertex and a level of the second axis; waits for the device.

    Args:
        first: level of each vertex on the first axis.
        second: level on the second axis.
        ends: vertices of the edges, shape (2, m).
        size: number of levels on each axis, which as a level means never.
    """
    n, device = len(first), first.device
    order = first.argsort(stable=True)
    age = torch.empty_like(order)
    age[order] = torch.arange(n, device=device)
    slices = torch.arange(size[1], device=device)[:, None]
    inside = (second <= slices) & (first < size[0])  # (r, n)
    both = inside[:, ends[0]] & inside[:, ends[1]]  # (r, m)
    lifted = (age[ends][:, None] + slices * n)[:, both]  # (2, used)
    _, merge = elder_pairs(lifted, n * size[1])
    # Vertices with an older neighbour start nothing, and `elder_pairs` leaves them out.
    minimum = torch.ones(n * size[1], dtype=torch.bool, device=device)
    minimum[lifted.amax(0)] = False
    born_in, born = (minimum.reshape(size[1], n)[:, age] & inside).nonzero().unbind(1)
    slice_of = torch.cat((born_in, merge // n))
    level = torch.cat((first[born].long(), first[order[merge % n]].long()))
    weight = torch.cat((torch.ones_like(born), -torch.ones_like(merge)))
    # The difference of each slice and the one before.
    again = slice_of + 1 < size[1]
    codes = level * size[1] + slice_of
    return torch.cat((codes, codes[again] + 1)), torch.cat((weight, -weight[again]))
