"""Permutations that bring the weights of one model as close to another's as coordinate ascent can."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffmatch.errors import InputError, check_positive
from diffmatch.matching.assignment import assign
from diffmatch.matching.weights.frank_wolfe import frank_wolfe_start
from diffmatch.matching.weights.incidence import Incidence, incidences
from diffmatch.matching.weights.layout import Layout, moved
from diffmatch.matching.weights.permute import (
    Permutations,
    apply_permutations,
    check_state,
    compose,
    identity_permutations,
    permute_tensor,
)
from diffmatch.matching.weights.spec import PermutationSpec

__all__ = ["WeightMatch", "match_weights", "weight_objective"]


@dataclass(frozen=True)
class WeightMatch:
    """What weight matching found.

    Attributes:
        permutations: to be applied to the second model.
        objective: inner product of the first model's learned weights and the permuted second's.
        initial: the same before.
        sweeps: passes over the atoms, of the start that was kept.
        converged: no single atom could improve the objective any more.
    """

    permutations: Permutations
    objective: float
    initial: float
    sweeps: int
    converged: bool


def match_weights(
    state_a: Mapping[str, Tensor],
    state_b: Mapping[str, Tensor],
    spec: PermutationSpec,
    *,
    start: Mapping[str, Tensor] | None = None,
    frank_wolfe: bool | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    tol: float = 1e-7,
    generator: torch.Generator | None = None,
) -> WeightMatch:
    """Align the units of a model with another's by their weights.

    Maximises f(π) = Σ_k ⟨A_k, (π·B)_k⟩ over the permutations of a spec, each learned tensor counted once, which is to
    minimise the distance of the weights. For one atom f is linear, so that its best permutation is an assignment of the
    Gram matrix of its units; the atoms take turns until none improves. An atom is looked at again only after another in
    one of its tensors has changed. Where inner permutations belong to an outer index, such as those of attention heads,
    both levels are solved together: every pair of heads by its best inner assignment, and the heads by these values.

    The problem is NP-hard and the result depends on the start and the order. A residual stream, which many tensors hold
    in place, is where this shows: there a second start comes from :func:`frank_wolfe_start`, and the larger objective
    wins.

    Args:
        state_a: state dict of the model that stays.
        state_b: state dict of the model that is aligned; integers and buffers do not count.
        spec: what may move.
        start: permutations to begin with; identity if None.
        frank_wolfe: whether to start from a relaxation too; None where there is a residual stream. It costs several
            times the ascent.
        restarts: further runs from ``start`` in random orders.
        max_sweeps: largest number of passes over the atoms.
        tol: smallest gain that counts, relative to Σ_k ‖A_k‖ ‖B_k‖.
        generator: source of the orders, on the CPU; None for a fixed seed.

    Returns:
        The permutations and the objective they reach.

    Raises:
        InputError: the states do not fit the spec or hold NaN or infinity.

    References:
        Ainsworth, Hayase, Srinivasa 2023, "Git Re-Basin", section 3.2.
    """
    check_state("state_a", state_a, spec)
    check_state("state_b", state_b, spec)
    check_positive("max_sweeps", float(max_sweeps))
    check_positive("tol", tol, allow_zero=True)
    problem = _Problem(state_a, state_b, spec, tol=tol)
    generator = generator or torch.Generator().manual_seed(0)
    first = {**identity_permutations(spec), **(start or {})}
    best = _ascend(problem, first, max_sweeps=max_sweeps)
    others: list[tuple[Permutations, torch.Generator | None]] = [(first, generator)] * restarts
    if frank_wolfe or (frank_wolfe is None and problem.has_stream):
        a, b = ({name: state[name] for name in problem.names} for state in (problem.a, problem.b))
        others.insert(0, (frank_wolfe_start(a, b, problem.moving_spec, first), None))
    for begin, order in others:
        found = _ascend(problem, begin, max_sweeps=max_sweeps, generator=order)
        if found.objective > best.objective:
            best = replace(found, initial=best.initial)
    return best


def weight_objective(state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], spec: PermutationSpec) -> float:
    """Σ_k ⟨A_k, B_k⟩ over the learned tensors that a spec describes, each counted once, summed in float64."""
    return sum(_inner(state_a[name], state_b[name]) for name in _learned(state_a, spec))


def _ascend(
    problem: "_Problem",
    start: Permutations,
    *,
    max_sweeps: int,
    generator: torch.Generator | None = None,
) -> WeightMatch:
    names = list(problem.spec.atoms)
    current = _Alignment(problem, start)
    initial = current.objective()
    dirty = set(names)
    sweeps = 0
    while dirty and sweeps < max_sweeps:
        order = list(range(len(names)))
        if generator is not None:
            order = torch.randperm(len(names), generator=generator).tolist()
        for name in (names[i] for i in order):
            if name not in dirty:
                continue
            dirty.discard(name)
            changed = current.improve(name)
            if problem.children[name] and current.improve_jointly(name):
                changed = True
            if changed:
                dirty |= problem.neighbours[name]
                # Linear in one atom, a step is the best there is; otherwise it may be followed by another.
                if name in problem.curved or problem.children[name]:
                    dirty.add(name)
        sweeps += 1
    return WeightMatch(current.permutations, current.objective(), initial, sweeps, not dirty)


class _Problem:
    """What does not change during the ascent: the first model and where the atoms are."""

    def __init__(
        self, state_a: Mapping[str, Tensor], state_b: Mapping[str, Tensor], spec: PermutationSpec, *, tol: float
    ) -> None:
        self.spec = spec
        names = _learned(state_a, spec)
        self.names = [name for name in names if any(True for layout in spec.layouts[name] for _ in moved(layout))]
        self.a = {name: _ready(f"state_a[{name!r}]", state_a[name]) for name in names}
        self.b = {name: _ready(f"state_b[{name!r}]", state_b[name]) for name in names}
        self.moving_spec = PermutationSpec(spec.atoms, {name: spec.layouts[name] for name in self.names})
        self.constant = sum(_inner(self.a[name], self.b[name]) for name in names if name not in self.names)
        norms = (float(self.a[name].double().norm() * self.b[name].double().norm()) for name in names)
        self.least_gain = tol * math.fsum(norms)
        self.parents = spec.parents()
        self.children = {
            name: [child for child, up in self.parents.items() if up == (name,)] if not self.parents[name] else []
            for name in spec.atoms
        }
        self.places = {name: self._places(name) for name in spec.atoms}
        self.neighbours = {
            name: {other for place in places for other in place.others} - {name} for name, places in self.places.items()
        }
        self.axes = {
            name: {place.name: _axes_of(spec.layouts[place.name], name) for place in places}
            for name, places in self.places.items()
        }
        # On two axes of one tensor an atom makes the objective quadratic.
        self.curved = {name for name, axes in self.axes.items() if any(len(found) > 1 for found in axes.values())}

    @property
    def has_stream(self) -> bool:
        """Whether an atom is written by several weights, as the stream of a residual net is."""
        for atom, tensors in self.axes.items():
            matrices = [axes for name, axes in tensors.items() if len(self.spec.layouts[name]) > 1]
            written, read = (sum(axis in axes for axes in matrices) for axis in (0, 1))
            if written > 1 and read > 1 and atom not in self.curved:
                return True
        return False

    def _places(self, atom: str) -> list[Incidence]:
        return [
            place
            for name in self.names
            for place in incidences(name, self.spec.layouts[name], atom, self.parents[atom])
        ]


@dataclass
class _Alignment:
    """The second model as permuted so far, one copy that every step reorders."""

    problem: _Problem
    permutations: Permutations
    b: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        p = self.problem
        moved_b = apply_permutations({name: p.b[name] for name in p.names}, p.moving_spec, self.permutations)
        self.b = {name: tensor.contiguous() for name, tensor in moved_b.items()}
        self.identity = identity_permutations(p.spec)

    def objective(self) -> float:
        """f at the current permutations."""
        return self.problem.constant + math.fsum(_inner(self.problem.a[n], self.b[n]) for n in self.problem.names)

    def improve(self, atom: str) -> bool:
        """Give one atom its best permutation, the others held; whether anything changed."""
        gram = self._gram(atom, self.problem.places[atom])
        chosen, gain = _best(gram)
        if gain <= self.problem.least_gain:
            return False
        relative = chosen.reshape(self.identity[atom].shape)
        return self._step({atom: relative}, trusted=atom not in self.problem.curved)

    def improve_jointly(self, atom: str) -> bool:
        """Pair the indices of an atom by the best inner permutations of its children; whether anything changed."""
        p, children = self.problem, self.problem.children[atom]
        n = p.spec.atoms[atom].size
        own = [place for place in p.places[atom] if not place.others & set(children)]
        score = self._gram(atom, own)[0] if own else torch.zeros(n, n)
        inner: dict[str, Tensor] = {}
        for child in children:
            gram = self._pairs(child, set(children))
            solved = assign(gram, maximize=True)
            inner[child] = solved.assignment
            score = score + solved.value.to(score)
        outer = assign(score, maximize=True).assignment
        rows = torch.arange(n)
        step = {atom: outer, **{child: inner[child][rows, outer] for child in children}}
        if all(torch.equal(step[name], self.identity[name]) for name in step):
            return False
        return self._step(step, trusted=False)

    def _step(self, relative: dict[str, Tensor], *, trusted: bool) -> bool:
        """Reorder the second model; a step that is not known to improve is taken back unless it does."""
        p = self.problem
        touched: dict[str, set[int]] = {}
        for atom in relative:
            for name, axes in p.axes[atom].items():
                touched.setdefault(name, set()).update(axes)
        before = {name: self.b[name] for name in touched}
        full = {**self.identity, **relative}
        for name, axes in touched.items():
            layouts = p.spec.layouts[name]
            self.b[name] = permute_tensor(before[name], layouts, full, p.parents, axes=axes).contiguous()
        if not trusted:
            gain = math.fsum(_inner(p.a[n], self.b[n]) - _inner(p.a[n], before[n]) for n in touched)
            if gain <= p.least_gain:
                self.b.update(before)
                return False
        self.permutations = compose(p.spec, self.permutations, full)
        return True

    def _gram(self, atom: str, places: Sequence[Incidence]) -> Tensor:
        """Inner products of the units of both models, shape (parents, n, n)."""
        total: Tensor | None = None
        for place in places:
            x, y = place.matrices(self.problem.a[place.name]), place.matrices(self.b[place.name])
            gram = x @ y.mT
            total = gram if total is None else total.add_(gram)
        assert total is not None
        return total

    def _pairs(self, child: str, children: set[str]) -> Tensor:
        """Gram matrices of a child's units for every pair of parent indices, shape (h, h, n, n).

        A place that several children share counts for each in part, so that it is counted once in all.
        """
        total: Tensor | None = None
        for place in self.problem.places[child]:
            x, y = place.matrices(self.problem.a[place.name]), place.matrices(self.b[place.name])
            h, n, _ = x.shape
            gram = (x.flatten(0, 1) @ y.flatten(0, 1).T).reshape(h, n, h, n).transpose(1, 2)
            gram = gram / (1 + len(place.others & (children - {child})))
            total = gram if total is None else total + gram
        assert total is not None
        return total.contiguous()


def _best(gram: Tensor) -> tuple[Tensor, float]:
    """Best assignment of each matrix, and by how much all together beat the identity."""
    chosen = assign(gram, maximize=True).assignment
    value = gram.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).double()
    gain = value.sum(-1) - gram.diagonal(dim1=-2, dim2=-1).double().sum(-1)
    return chosen, float(gain.sum())


def _inner(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x.flatten().double(), y.flatten().double()))


def _learned(state: Mapping[str, Tensor], spec: PermutationSpec) -> list[str]:
    """The entries that count: learned, real, and each memory once."""
    found: dict[object, str] = {}
    for name in spec.layouts:
        tensor = state[name]
        if name not in spec.buffers and tensor.is_floating_point():
            found.setdefault((tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape)), name)
    return list(found.values())


def _ready(argument: str, tensor: Tensor) -> Tensor:
    if not torch.isfinite(tensor).all():
        raise InputError(argument, "finite values", "NaN or infinity")
    tensor = tensor.detach()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).contiguous()


def _axes_of(layouts: Sequence[Layout], atom: str) -> set[int]:
    return {i for i, layout in enumerate(layouts) if any(leaf.atom == atom for leaf in moved(layout))}
