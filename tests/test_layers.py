"""The layers of the package point one way, and optional packages are imported only where they are used."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "diffmatch"

# What each part may import from; "diffmatch" is the package's own __init__, with the version and the first names.
BOTTOM = {"errors", "named", "ops", "data", "io"}
FITTING = {"interrupts", "snapshots", "history", "evaluation", "checkpoints", "fitting"}
SOLVERS = BOTTOM | {"autodiff", "optim"} | FITTING
LAYERS = {
    "errors": set(),
    "data": {"errors"},
    "named": {"errors"},
    "ops": {"errors", "data"},
    "io": {"errors", "ops", "data"},
    "autodiff": {"errors", "ops"},
    "optim": {"errors", "ops", "autodiff"},
    # the pieces of the loop, which `fitting` puts together
    "interrupts": {"errors"},
    "snapshots": {"errors"},
    "history": {"errors", "io"},
    "evaluation": {"errors", "snapshots"},
    "checkpoints": {"errors", "io", "history"},
    "fitting": SOLVERS,
    "meshing": SOLVERS,
    "matching": SOLVERS,
    "topology": SOLVERS | {"matching"},
    "diffmatch": SOLVERS | {"meshing", "matching", "topology"},
    "report": SOLVERS | {"meshing", "matching", "topology", "diffmatch"},
    "cli": SOLVERS | {"meshing", "matching", "topology", "diffmatch", "report"},
    "__main__": {"cli"},
}

OPTIONAL = {
    "PIL",
    "cv2",
    "gudhi",
    "igl",
    "kaolin",
    "kornia",
    "meshio",
    "multipers",
    "networkx",
    "ot",
    "plotly",
    "pytorch3d",
    "torch_geometric",
    "trimesh",
    "viser",
}


def modules() -> dict[str, Path]:
    """Dotted name and file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[str, int]]:
    """Absolute names that a module imports anywhere in its code, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from diffmatch import meshing` imports a module, `from diffmatch import fit` a name: keep both levels
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def imports_at_import(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Top-level names of what is imported when the module is: not in functions, not for type checkers only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node.lineno
        waiting.extend(ast.iter_child_nodes(node))


def part_of(name: str) -> str:
    """The part of the package that an absolute name belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "diffmatch"


def violations(tree: ast.Module, module: str, *, is_package: bool) -> list[str]:
    """Imports of a module that its layer does not allow."""
    own = part_of(module)
    return [
        f"{module}, line {line}: {own} must not import {name}"
        for name, line in imports(tree, module, is_package=is_package)
        if name.split(".")[0] == "diffmatch" and part_of(name) not in LAYERS[own] | {own}
    ]


@pytest.mark.parametrize("module", modules())
def test_layers_point_one_way(module):
    path = modules()[module]
    assert not violations(ast.parse(path.read_text()), module, is_package=path.name == "__init__.py")


@pytest.mark.parametrize("module", modules())
def test_optional_packages_are_imported_where_they_are_used(module):
    found = [(name, line) for name, line in imports_at_import(ast.parse(modules()[module].read_text()))]
    assert not [(name, line) for name, line in found if name in OPTIONAL]


def test_every_part_has_a_layer():
    parts = {name.split(".")[1] for name in modules() if "." in name}
    assert parts <= set(LAYERS), "a new part of the package needs a line in LAYERS"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffmatch.meshing.losses", "from diffmatch.matching import sinkhorn"),
        ("diffmatch.meshing.losses", "from diffmatch import matching"),
        ("diffmatch.meshing.losses", "from diffmatch import __version__"),
        ("diffmatch.meshing.losses", "def f():\n    import diffmatch.topology.losses"),
        ("diffmatch.meshing.losses", "from ..report import page"),
        ("diffmatch.topology.losses", "from diffmatch.meshing import Grid"),
        ("diffmatch.optim.lion", "from diffmatch.fitting import fit"),
        ("diffmatch.report", "from diffmatch.cli import main"),
    ],
)
def test_wrong_direction_is_found(module, source):
    assert violations(ast.parse(source), module, is_package=False)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("diffmatch.meshing.losses", "from diffmatch.errors import InputError"),
        ("diffmatch.meshing.losses", "from .grid import Grid"),
        ("diffmatch.topology.losses", "from ..matching import assign"),
        ("diffmatch.cli.mesh", "from diffmatch import __version__"),
    ],
)
def test_right_direction_is_allowed(module, source):
    assert not violations(ast.parse(source), module, is_package=False)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import trimesh.util as t", ["trimesh"]),
        ("try:\n    import cv2\nexcept ImportError:\n    cv2 = None", ["cv2"]),
        ("class A:\n    from PIL import Image", ["PIL"]),
        ("def f():\n    import trimesh", []),
        ("if TYPE_CHECKING:\n    import trimesh", []),
    ],
)
def test_imports_at_import_are_found(source, found):
    assert [name for name, _ in imports_at_import(ast.parse(source))] == found


def test_import_brings_no_optional_package_and_changes_no_global():
    script = f"""
import importlib, json, logging, sys
import torch, numpy, scipy, numba
known, threads, state = set(sys.modules), torch.get_num_threads(), torch.get_rng_state()
for name in {list(modules())!r}:
    if not name.endswith("__main__"):
        importlib.import_module(name)
top = {{name.split(".")[0] for name in set(sys.modules) - known}}
print(json.dumps({{
    "optional": sorted(top & {OPTIONAL!r}),
    "threads kept": torch.get_num_threads() == threads,
    "random state kept": bool((torch.get_rng_state() == state).all()),
    "dtype kept": torch.get_default_dtype() == torch.float32,
    "log handlers": len(logging.getLogger().handlers),
}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "optional": [],
        "threads kept": True,
        "random state kept": True,
        "dtype kept": True,
        "log handlers": 0,
    }
