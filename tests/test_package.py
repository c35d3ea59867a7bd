"""What is shipped: the version, the files in the distributions, the links, and the commands that the pages name."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import diffmatch

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [path for path in [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/**/*.md"))] if path.exists()]
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def fenced(path: Path, languages: set[str]) -> list[str]:
    """Fenced code blocks of a page in the given languages."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [code for language, code in blocks if language in languages]


def built(hook: str, source: Path, target: Path) -> Path:
    """A distribution of a source tree, built by the backend alone: no network, no environment of its own."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(target)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive, and the wheel built from what it holds, as an installer would."""
    pytest.importorskip("hatchling")
    if not (REPOSITORY / "README.md").exists():
        pytest.skip("no README.md")
    folder = tmp_path_factory.mktemp("distributions")
    archive = built("build_sdist", REPOSITORY, folder)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return archive, built("build_wheel", folder / archive.name.removesuffix(".tar.gz"), folder)


def test_wheel_holds_the_package_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = wheel.namelist()
    info = f"diffmatch_torch-{diffmatch.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"diffmatch", info}
    assert f"{info}/licenses/LICENSE" in names
    assert "diffmatch/py.typed" in names
    package = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "diffmatch").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == package


def test_wheel_says_its_version_and_command(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        info = f"diffmatch_torch-{diffmatch.__version__}.dist-info"
        assert f"\nVersion: {diffmatch.__version__}\n" in wheel.read(f"{info}/METADATA").decode()
        assert "diffmatch = diffmatch.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_source_archive_holds_no_links_and_no_build_products(distributions):
    with tarfile.open(distributions[0]) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not [member.name for member in members if re.search(r"__pycache__|\.venv|/site/", member.name)]


def test_installed_version_is_that_of_the_source():
    try:
        installed = importlib.metadata.version("diffmatch-torch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the distribution is not installed")
    assert installed == diffmatch.__version__


def test_changelog_has_a_section_for_this_version():
    assert re.search(
        rf"^## {re.escape(diffmatch.__version__)}\b", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE
    )


@pytest.mark.parametrize("name", ["meshing", "matching", "topology"])
def test_links_at_the_top_lead_into_the_package(name):
    link = REPOSITORY / name
    if not link.exists():
        pytest.skip("a source archive has no links")
    assert link.is_symlink()
    assert link.resolve() == REPOSITORY / "diffmatch" / name
    assert importlib.import_module(f"diffmatch.{name}").__file__ == str(REPOSITORY / "diffmatch" / name / "__init__.py")


def test_each_module_of_the_package_is_loaded_once():
    """Collection has imported the doctests' modules: a second copy, through a link or a path, would stand here."""
    package = REPOSITORY / "diffmatch"
    names: dict[Path, set[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and (path := Path(file).resolve()).is_relative_to(package):
            names.setdefault(path, set()).add(name)
    assert names
    assert not {path: found for path, found in names.items() if len(found) > 1}
    assert all(name.split(".")[0] == "diffmatch" for found in names.values() for name in found)


@pytest.mark.parametrize("page", [*PAGES, REPOSITORY / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_make_targets_that_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    code = [*re.findall(r"`(make [^`]+)`", page.read_text()), *fenced(page, {"", "sh", "bash", "console"})]
    named = {name for text in code for name in re.findall(r"^(?:\$ )?make ([a-z-]+)", text, re.MULTILINE)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_pages_import_exist(page):
    for code in fenced(page, {"python", "py"}):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffmatch":
                module = importlib.import_module(str(node.module))
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@pytest.fixture(scope="module")
def commands() -> set[str]:
    """Words of the command line's help, its sub-commands among them."""
    done = subprocess.run(
        [sys.executable, "-m", "diffmatch", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"[a-z]+", done.stdout))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_pages_name_exist(page, commands):
    code = [*re.findall(r"`(diffmatch [^`]+)`", page.read_text()), *fenced(page, {"", "sh", "bash", "console"})]
    named = {name for text in code for name in re.findall(r"^(?:\$ )?diffmatch ([a-z]+)", text, re.MULTILINE)}
    assert named <= commands
