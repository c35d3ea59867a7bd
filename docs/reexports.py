"""Shows in the reference what a module re-exports by name: ``from a import x as x`` makes ``x`` public.

An extension of griffe, which reads the sources for the site; see ``mkdocs.yml``.
"""

import ast
from typing import Any

import griffe


class Reexports(griffe.Extension):
    """Marks redundantly aliased imports as public, as type checkers do."""

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """Read the imports of one module."""
        if not mod.is_init_module:
            return
        for node in ast.parse(mod.filepath.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                for name in (alias.name for alias in node.names if alias.asname == alias.name):
                    mod.members[name].public = True
