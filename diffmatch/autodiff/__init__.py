"""How gradients pass through solvers that have none."""

from diffmatch.autodiff.blackbox import BlackBox as BlackBox
from diffmatch.autodiff.hessian import Curvature as Curvature
from diffmatch.autodiff.hessian import DiagonalHessian as DiagonalHessian
from diffmatch.autodiff.hessian import EmpiricalFisher as EmpiricalFisher
from diffmatch.autodiff.hessian import ExactHessian as ExactHessian
from diffmatch.autodiff.hessian import GaussNewton as GaussNewton
from diffmatch.autodiff.hessian import Probes as Probes
from diffmatch.autodiff.hessian import gradients as gradients
from diffmatch.autodiff.hessian import hessian_diagonal as hessian_diagonal
from diffmatch.autodiff.hessian import hessian_product as hessian_product
from diffmatch.autodiff.implicit_mle import ImplicitMLE as ImplicitMLE
from diffmatch.autodiff.noise import gumbel as gumbel
from diffmatch.autodiff.noise import normal as normal
from diffmatch.autodiff.noise import sum_of_gamma as sum_of_gamma
from diffmatch.autodiff.perturbed import Perturbed as Perturbed
from diffmatch.autodiff.perturbed import fenchel_young_loss as fenchel_young_loss
from diffmatch.autodiff.solvers import Estimator as Estimator
from diffmatch.autodiff.solvers import Solver as Solver
from diffmatch.autodiff.straight_through import StraightThrough as StraightThrough

__all__ = [
    "BlackBox",
    "Curvature",
    "DiagonalHessian",
    "EmpiricalFisher",
    "Estimator",
    "ExactHessian",
    "GaussNewton",
    "ImplicitMLE",
    "Perturbed",
    "Probes",
    "Solver",
    "StraightThrough",
    "fenchel_young_loss",
    "gradients",
    "gumbel",
    "hessian_diagonal",
    "hessian_product",
    "normal",
    "sum_of_gamma",
]
