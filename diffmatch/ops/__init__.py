"""Shared tensor operations."""

from diffmatch.ops.rows import distinct_rows as distinct_rows
from diffmatch.ops.rows import gather_rows as gather_rows
from diffmatch.ops.rows import lazy_zeros as lazy_zeros
from diffmatch.ops.segments import offsets_to_index as offsets_to_index
from diffmatch.ops.segments import segment_sum as segment_sum
