"""Permutations of the units of a model: applied to its state, inverted, composed, drawn at random."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from diffmatch.errors import InputError
from diffmatch.matching.weights.layout import Fixed, Layout, Moved, Product, Segments, axis_index, moved
from diffmatch.matching.weights.spec import Atom, PermutationSpec

__all__ = [
    "Permutations",
    "apply_permutations",
    "compose_permutations",
    "identity_permutations",
    "inverse_permutations",
    "random_permutations",
]

Permutations = dict[str, Tensor]
"""For each atom the old index of each new index, shape (\\*sizes of its parents, size), int64. The parents' indices are
the new ones."""


def identity_permutations(spec: PermutationSpec) -> Permutations:
    """The permutations that move nothing."""
    return {
        name: torch.arange(atom.size).expand(*_lead(spec, atom), -1).contiguous() for name, atom in spec.atoms.items()
    }


def random_permutations(spec: PermutationSpec, *, generator: torch.Generator | None = None) -> Permutations:
    """Independent uniform permutations of all atoms.

    Args:
        spec: names the atoms.
        generator: source of randomness, on the CPU.
    """
    return {
        name: torch.rand(*_lead(spec, atom), atom.size, generator=generator, dtype=torch.float64).argsort(-1)
        for name, atom in spec.atoms.items()
    }


def apply_permutations(
    state: Mapping[str, Tensor], spec: PermutationSpec, permutations: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Permute the units of a model; with the spec of that model, its function stays as it is.

    Values are reordered and nothing else: dtypes and devices stay, and entries that share memory do so afterwards.

    Args:
        state: state dict of the model.
        spec: what each axis is made of.
        permutations: one an atom; atoms that are left out stay.

    Returns:
        A new state dict; tensors that nothing moves are the given ones.

    Raises:
        InputError: an entry is missing or has another shape than the spec, or a permutation is none.
    """
    check_state("state", state, spec)
    full = full_permutations(spec, permutations)
    parents = spec.parents()
    done: dict[object, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        layouts = spec.layouts.get(name)
        if layouts is None:
            result[name] = tensor
            continue
        key = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if key not in done:
            done[key] = permute_tensor(tensor, layouts, full, parents)
        result[name] = done[key]
    return result


def inverse_permutations(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> Permutations:
    """The permutations that undo these."""
    full = full_permutations(spec, permutations)
    inverse: Permutations = {}
    for name in _parents_first(spec):
        atom, plain = spec.atoms[name], full[name].argsort(-1)
        # The inverse takes parent index h back to where it came from: the permutation to undo there is that of the
        # new index, which the parent's inverse names.
        inverse[name] = plain[_parent_index(spec, atom, inverse)] if atom.parents else plain
    return inverse


def compose_permutations(
    spec: PermutationSpec, first: Mapping[str, Tensor], then: Mapping[str, Tensor]
) -> Permutations:
    """The permutations that have the effect of applying ``first`` and ``then`` after it."""
    return compose(spec, full_permutations(spec, first), full_permutations(spec, then))


def compose(spec: PermutationSpec, first: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> Permutations:
    """:func:`compose_permutations` of all atoms, unchecked."""
    composed = {}
    for name, atom in spec.atoms.items():
        inner = first[name][_parent_index(spec, atom, then)] if atom.parents else first[name]
        composed[name] = inner.gather(-1, then[name])
    return composed


def full_permutations(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> Permutations:
    """Permutations of all atoms: the given ones, checked, and the identity of the others."""
    return {**identity_permutations(spec), **_checked(spec, permutations)}


def permute_tensor(
    tensor: Tensor,
    layouts: tuple[Layout, ...],
    permutations: Mapping[str, Tensor],
    parents: dict[str, tuple[str, ...]],
    *,
    axes: Iterable[int] | None = None,
) -> Tensor:
    """One tensor with the atoms on its axes (or on some of them) permuted."""
    chosen = [i for i in (range(len(layouts)) if axes is None else axes) if not isinstance(layouts[i], Fixed)]
    if len(chosen) > 1 and any(parents.values()):
        chosen.sort(key=lambda i: _depth(layouts[i], parents))
    for axis in chosen:
        layout = layouts[axis]
        if isinstance(layout, Moved) and not parents[layout.atom]:
            tensor = tensor.index_select(axis, permutations[layout.atom].to(tensor.device))
            continue
        if not any(True for _ in moved(layout)):
            continue
        own = {leaf.atom for leaf in moved(layout)}
        outside = sorted({p for atom in own for p in parents[atom]} - own)
        sizes = {leaf.atom: leaf.size for other in layouts for leaf in moved(other)}
        outer = tuple((name, sizes[name]) for name in outside)
        index = axis_index(layout, permutations, parents, outer).to(tensor.device)
        if not outside:
            tensor = tensor.index_select(axis, index)
        else:
            tensor = _gather(tensor, axis, index, layouts, outside)
    return tensor


def check_state(argument: str, state: Mapping[str, Tensor], spec: PermutationSpec) -> None:
    """Check that a state has the entries and shapes that a spec describes.

    Raises:
        InputError: listing what is missing or differs.
    """
    wrong = []
    for name, layouts in spec.layouts.items():
        shape = tuple(layout.size for layout in layouts)
        if name not in state:
            wrong.append(f"no {name}")
        elif state[name].shape != shape:
            wrong.append(f"{name} {tuple(state[name].shape)} for {shape}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InputError(argument, "the entries and shapes of the spec", ", ".join(wrong[:8]) + more)


def _gather(tensor: Tensor, axis: int, index: Tensor, layouts: tuple[Layout, ...], outside: list[str]) -> Tensor:
    """Reorder an axis differently for each index that the atoms outside have on their own axes."""
    shape = [1] * tensor.ndim
    shape[axis] = tensor.shape[axis]
    coordinates = []
    for atom in outside:
        other = next(i for i, layout in enumerate(layouts) if any(leaf.atom == atom for leaf in moved(layout)))
        coordinate = _coordinate(layouts[other], atom).to(tensor.device)
        coordinates.append(coordinate.reshape([-1 if i == other else 1 for i in range(tensor.ndim)]))
        shape[other] = tensor.shape[other]
    last = torch.arange(tensor.shape[axis], device=tensor.device)
    last = last.reshape([-1 if i == axis else 1 for i in range(tensor.ndim)])
    sizes = [index.shape[i] for i in range(index.ndim - 1)]
    coordinates = [c if size > 1 else torch.zeros_like(c) for c, size in zip(coordinates, sizes, strict=True)]
    return torch.take_along_dim(tensor, index[(*coordinates, last)].expand(shape), axis)


def _coordinate(layout: Layout, atom: str) -> Tensor:
    """The index of an atom at each position of an axis; zero where the atom is not."""
    if isinstance(layout, Moved):
        return torch.arange(layout.size) if layout.atom == atom else torch.zeros(layout.size, dtype=torch.int64)
    if isinstance(layout, Segments):
        return torch.cat([_coordinate(part, atom) for part in layout.parts])
    if isinstance(layout, Product):
        total = torch.zeros(1, dtype=torch.int64)
        for factor in layout.factors:
            total = (total[:, None] + _coordinate(factor, atom)).flatten()
        return total
    return torch.zeros(layout.size, dtype=torch.int64)


def _parent_index(spec: PermutationSpec, atom: Atom, permutations: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Index into the leading axes of an atom's permutation: the old parent indices of all new ones."""
    own = atom.parents
    found = []
    for name in own:
        permutation = permutations[name]
        grand = spec.atoms[name].parents
        order = sorted(range(len(grand)), key=lambda i: own.index(grand[i]))
        shape = [spec.atoms[p].size if p in grand or p == name else 1 for p in own]
        # the parent's own index is the last axis of its permutation; bring it to its place among the parents
        names = [*(grand[i] for i in order), name]
        permutation = permutation.permute(*order, len(grand))
        arranged = permutation.permute(*(names.index(p) for p in own if p in names))
        found.append(arranged.reshape(shape))
    return tuple(found)


def _parents_first(spec: PermutationSpec) -> list[str]:
    parents = spec.parents()
    return sorted(spec.atoms, key=lambda name: _atom_depth(name, parents))


def _atom_depth(name: str, parents: dict[str, tuple[str, ...]]) -> int:
    return 1 + max((_atom_depth(p, parents) for p in parents[name]), default=-1)


def _depth(layout: Layout, parents: dict[str, tuple[str, ...]]) -> int:
    return max((_atom_depth(leaf.atom, parents) for leaf in moved(layout)), default=0)


def _lead(spec: PermutationSpec, atom: Atom) -> list[int]:
    return [spec.atoms[p].size for p in atom.parents]


def _checked(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> Permutations:
    for name, permutation in permutations.items():
        if name not in spec.atoms:
            raise InputError("permutations", "names of the spec's atoms", repr(name))
        atom = spec.atoms[name]
        shape = (*_lead(spec, atom), atom.size)
        if permutation.dtype.is_floating_point or permutation.dtype == torch.bool or permutation.shape != shape:
            wanted = f"integers of shape {shape}"
            raise InputError(f"permutations[{name!r}]", wanted, f"{permutation.dtype} {tuple(permutation.shape)}")
        if not torch.equal(permutation.sort(-1).values.long(), torch.arange(atom.size).expand(shape)):
            raise InputError(f"permutations[{name!r}]", f"each of 0 to {atom.size - 1} once", "something else")
    return {name: permutation.long() for name, permutation in permutations.items()}
