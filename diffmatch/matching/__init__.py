"""Transport, assignment and graph matching."""
