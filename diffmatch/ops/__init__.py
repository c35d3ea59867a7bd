"""Shared tensor operations."""

from diffmatch.ops.segments import gather_rows as gather_rows
from diffmatch.ops.segments import offsets_to_index as offsets_to_index
from diffmatch.ops.segments import segment_sum as segment_sum
