"""Quadratic assignment: problems whose cost depends on pairs of matches."""

from diffmatch.matching.quadratic.tabu import QuadraticResult, tabu_search

__all__ = ["QuadraticResult", "tabu_search"]
