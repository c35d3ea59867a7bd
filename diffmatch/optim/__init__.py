"""Optimizers, one a file, all of them `torch.optim.Optimizer`; by name through the registry."""

from diffmatch.optim.adahessian import AdaHessian as AdaHessian
from diffmatch.optim.adam_uniform import AdamUniform as AdamUniform
from diffmatch.optim.dct import DCTAdamW as DCTAdamW
from diffmatch.optim.eight_bit import Adam8bit as Adam8bit
from diffmatch.optim.eight_bit import AdamW8bit as AdamW8bit
from diffmatch.optim.eight_bit import Lion8bit as Lion8bit
from diffmatch.optim.eight_bit import SGD8bit as SGD8bit
from diffmatch.optim.exadam import EXAdam as EXAdam
from diffmatch.optim.lion import Lion as Lion
from diffmatch.optim.newton import Newton as Newton
from diffmatch.optim.registry import OptimizerSpec as OptimizerSpec
from diffmatch.optim.registry import make_optimizer as make_optimizer
from diffmatch.optim.registry import optimizer_names as optimizer_names
from diffmatch.optim.registry import optimizer_spec as optimizer_spec
from diffmatch.optim.sophia import SophiaG as SophiaG
from diffmatch.optim.sophia import SophiaH as SophiaH
from diffmatch.optim.structure import GraphFilter as GraphFilter
from diffmatch.optim.structure import GridFilter as GridFilter
from diffmatch.optim.structure import precondition as precondition
