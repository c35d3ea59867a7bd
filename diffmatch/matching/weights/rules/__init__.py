"""The rules of the operations, by subject; importing the package registers them."""

from diffmatch.matching.weights.rules import attention as attention
from diffmatch.matching.weights.rules import convolution as convolution
from diffmatch.matching.weights.rules import indexing as indexing
from diffmatch.matching.weights.rules import linear as linear
from diffmatch.matching.weights.rules import normalization as normalization
from diffmatch.matching.weights.rules import pointwise as pointwise
from diffmatch.matching.weights.rules import recurrent as recurrent
from diffmatch.matching.weights.rules import reduction as reduction
from diffmatch.matching.weights.rules import shape as shape
