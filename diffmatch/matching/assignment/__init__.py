"""Linear assignment: batched, masked, rectangular, with dual variables and gradients."""

from diffmatch.matching.assignment.result import AssignmentResult as AssignmentResult
from diffmatch.matching.assignment.solve import assign as assign

__all__ = ["AssignmentResult", "assign"]
