"""Persistent homology and topological losses."""
