"""Optimizers, one a file, all of them `torch.optim.Optimizer`; by name through the registry."""

from diffmatch.optim.registry import OptimizerSpec as OptimizerSpec
from diffmatch.optim.registry import make_optimizer as make_optimizer
from diffmatch.optim.registry import optimizer_names as optimizer_names
from diffmatch.optim.registry import optimizer_spec as optimizer_spec
