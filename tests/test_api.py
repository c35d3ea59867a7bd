"""The public names and their parameters, compared with ``api_surface.json``.

A name that disappears breaks users, a name that appears is a promise: both are written down on purpose, with
``python tests/test_api.py --update`` and a line in CHANGELOG.md.
"""

import ast
import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "diffmatch"
SNAPSHOT = HERE / "api_surface.json"


def public_modules() -> list[str]:
    """The packages at any depth and the modules at the top: what users import from."""
    names = ["diffmatch"]
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        elif len(parts) > 1:
            continue
        if parts and not any(part.startswith("_") for part in parts):
            names.append(".".join(("diffmatch", *parts)))
    return sorted(names)


def public_names(source: str) -> list[str]:
    """Names that a module offers: its ``__all__``, else what it re-exports (``x as x``) or defines."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = [
                t.id for t in getattr(node, "targets", [getattr(node, "target", None)]) if isinstance(t, ast.Name)
            ]
            if targets == ["__all__"]:
                return sorted(ast.literal_eval(node.value))
            names.update(targets)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names if alias.asname == alias.name)
    return sorted(name for name in names if not name.startswith("_") and name != "logger")


def parameters(function: Any) -> str:
    """Parameters of a function as text: their order and names, keyword-only after ``*``, optional ones with ``=``."""
    words, keyword_only = [], False
    for p in inspect.signature(function).parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            words, keyword_only = [*words, "*" + p.name], True
            continue
        if p.kind is p.KEYWORD_ONLY and not keyword_only:
            words, keyword_only = [*words, "*"], True
        prefix = "**" if p.kind is p.VAR_KEYWORD else ""
        words.append(prefix + p.name + ("" if p.default is p.empty else "="))
    return f"({', '.join(words)})"


def members(cls: type) -> dict[str, str]:
    """Constructor, methods, properties and fields of a class, its bases in this package included."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] != "diffmatch":
            continue
        found |= dict.fromkeys(inspect.get_annotations(base), "field")
        for name, value in vars(base).items():
            if isinstance(value, property):
                found[name] = "property"
            elif isinstance(value, staticmethod | classmethod):
                found[name] = parameters(getattr(cls, name))
            elif inspect.isfunction(value):
                found[name] = parameters(value)
    public = {name: kind for name, kind in sorted(found.items()) if not name.startswith("_")}
    try:
        return {"()": parameters(cls)} | public
    except ValueError:  # a builtin constructor without a signature
        return public


def describe(value: Any) -> Any:
    """What the snapshot says about one public name."""
    if inspect.isclass(value):
        return members(value)
    return parameters(value) if inspect.isroutine(value) else "value"


def surface() -> dict[str, dict[str, Any]]:
    """Public modules, their public names, and how each is called."""
    result = {}
    for name in public_modules():
        module = importlib.import_module(name)
        names = public_names(Path(str(module.__file__)).read_text())
        result[name] = {public: describe(getattr(module, public)) for public in names}
    return result


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dictionaries as one, with dotted keys; an empty one keeps its key."""
    items: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{key}.") or {f"{prefix}{key}": "empty"}
        else:
            items[prefix + key] = value
    return items


def test_public_names_and_parameters_are_those_of_the_snapshot():
    was, now = flat(json.loads(SNAPSHOT.read_text())), flat(surface())
    changes = [f"gone: {name}{was[name]}" for name in was.keys() - now.keys()]
    changes += [f"new: {name}{now[name]}" for name in now.keys() - was.keys()]
    changes += [f"changed: {n} {was[n]} -> {now[n]}" for n in was.keys() & now.keys() if was[n] != now[n]]
    assert not changes, "\n".join([*sorted(changes), "if that is meant: python tests/test_api.py --update"])


@pytest.mark.parametrize("name", public_modules())
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    for public in public_names(Path(str(module.__file__)).read_text()):
        value = getattr(module, public)
        if not inspect.isroutine(value) and not inspect.isclass(value):
            continue
        text = inspect.getdoc(value) or f"{public}("  # what a dataclass without a docstring gets
        assert not text.startswith(f"{public}("), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py"))])
def test_parts_with_public_names_have_a_page_in_the_reference(name):
    names = public_names((PACKAGE / name / "__init__.py").read_text())
    pages = "".join(page.read_text() for page in HERE.parent.glob("docs/api/*.md"))
    shown = re.search(rf"^::: diffmatch\.{name}$", pages, re.MULTILINE)
    assert shown or not names or name == "cli"  # the commands document themselves: `diffmatch --help`


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from a import x as x, y as z, w\nimport os", ["x"]),
        ("from a import x as x\n__all__ = ['q']\ndef f(): ...", ["q"]),
        ("def f(): ...\nclass A: ...\ndef _g(): ...\nB: int = 1\nC = 2", ["A", "B", "C", "f"]),
    ],
)
def test_public_names_are_read_from_the_source(source, names):
    assert public_names(source) == names


def test_parameters_show_order_kind_and_need():
    def f(a, b=1, *, c, d=2, **e):
        return a, b, c, d, e

    def g(a, *args, c):
        return a, args, c

    assert parameters(f) == "(a, b=, *, c, d=, **e)"
    assert parameters(g) == "(a, *args, c)"


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python tests/test_api.py --update")
    sys.path.insert(0, str(HERE.parent))
    SNAPSHOT.write_text(json.dumps(surface(), indent=1) + "\n")
