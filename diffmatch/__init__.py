"""Differentiable geometry and matching on PyTorch."""

from diffmatch.fitting import fit as fit

__version__ = "0.1.0"
