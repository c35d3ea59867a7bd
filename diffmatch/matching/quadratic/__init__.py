"""Quadratic assignment: problems whose value depends on pairs of matches."""

from diffmatch.matching.quadratic.affinity import Affinity as Affinity
from diffmatch.matching.quadratic.affinity import EdgeAffinity as EdgeAffinity
from diffmatch.matching.quadratic.affinity import KroneckerAffinity as KroneckerAffinity
from diffmatch.matching.quadratic.affinity import SumAffinity as SumAffinity
from diffmatch.matching.quadratic.factors import gaussian_factors as gaussian_factors
from diffmatch.matching.quadratic.gromov import GromovResult as GromovResult
from diffmatch.matching.quadratic.gromov import gromov_wasserstein as gromov_wasserstein
from diffmatch.matching.quadratic.result import QuadraticResult as QuadraticResult
from diffmatch.matching.quadratic.solve import match_affinity as match_affinity
from diffmatch.matching.quadratic.tabu import tabu_search as tabu_search

__all__ = [
    "Affinity",
    "EdgeAffinity",
    "GromovResult",
    "KroneckerAffinity",
    "QuadraticResult",
    "SumAffinity",
    "gaussian_factors",
    "gromov_wasserstein",
    "match_affinity",
    "tabu_search",
]
