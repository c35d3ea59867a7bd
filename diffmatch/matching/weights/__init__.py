"""Merging trained models whose units were aligned by permutations."""

from diffmatch.matching.weights.check import check_spec as check_spec
from diffmatch.matching.weights.derive import permutation_spec as permutation_spec
from diffmatch.matching.weights.permute import apply_permutations as apply_permutations
from diffmatch.matching.weights.permute import compose_permutations as compose_permutations
from diffmatch.matching.weights.permute import identity_permutations as identity_permutations
from diffmatch.matching.weights.permute import inverse_permutations as inverse_permutations
from diffmatch.matching.weights.permute import random_permutations as random_permutations
from diffmatch.matching.weights.spec import Atom as Atom
from diffmatch.matching.weights.spec import PermutationSpec as PermutationSpec
from diffmatch.matching.weights.weight_matching import WeightMatch as WeightMatch
from diffmatch.matching.weights.weight_matching import match_weights as match_weights
from diffmatch.matching.weights.weight_matching import weight_objective as weight_objective
