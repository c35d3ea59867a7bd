"""What all tests share: device and dtype from the command line, seeded randomness, research files, tolerances.

The package is not imported here: the annotation checks (``--jaxtyping-packages``) only reach what is imported later.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

# numba reads this at import, and sees no edits in files that a cached kernel calls into: a run starts from an empty
# cache, unless the caller has made one (`make test` does, for its two calls).
_own_numba_cache = None if "NUMBA_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="diffmatch-numba-")
if _own_numba_cache:
    os.environ["NUMBA_CACHE_DIR"] = _own_numba_cache

# A shell that runs the tests in the background has them ignore Ctrl-C, and their children too: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors of the tests are small: more threads only wait for each other.
torch.set_num_threads(min(4, torch.get_num_threads()))

# `ci` draws the same examples on each run, so that no change is blamed for another's luck; `full` looks for new ones.
hypothesis.settings.register_profile(
    "ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "full",
    max_examples=500,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}

# Relative and absolute tolerance of a few dozen operations on numbers of order one: the one place where it is chosen.
TOLERANCES = {
    torch.float16: (1e-2, 1e-2),
    torch.bfloat16: (5e-2, 5e-2),
    torch.float32: (1e-4, 1e-5),
    torch.float64: (1e-9, 1e-11),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tensors (default: cpu)")
    parser.addoption("--dtype", default="float32", choices=sorted(DTYPES), help="dtype of the tensors")


def pytest_configure(config: pytest.Config) -> None:
    try:
        torch.empty(1, device=config.getoption("--device"))
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise pytest.UsageError(f"--device {config.getoption('--device')}: {error}") from error


def pytest_unconfigure() -> None:
    if _own_numba_cache:
        shutil.rmtree(_own_numba_cache, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    profile = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    device, dtype = config.getoption("--device"), config.getoption("--dtype")
    return f"torch {torch.__version__}, device {device}, {dtype}, hypothesis profile {profile}"


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that ``--device`` names."""
    return torch.device(pytestconfig.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(pytestconfig: pytest.Config) -> torch.dtype:
    """The dtype that ``--dtype`` names."""
    return DTYPES[pytestconfig.getoption("--dtype")]


@pytest.fixture
def generator(device: torch.device) -> torch.Generator:
    """A generator on the device, in the same state at the start of every test."""
    return torch.Generator(device).manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the research files; the test is skipped where the environment does not name one."""
    name = os.environ.get("DIFFMATCH_DATA")
    if not name:
        pytest.skip("DIFFMATCH_DATA is not set")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"DIFFMATCH_DATA is {name!r}, which is not a folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tolerance() -> Callable[..., dict[str, float]]:
    """Tolerances of a dtype: ``torch.testing.assert_close(a, b, **tolerance(a.dtype))``; `scale` loosens both."""

    def of(dtype: torch.dtype, scale: float = 1.0) -> dict[str, float]:
        rtol, atol = TOLERANCES[dtype]
        return {"rtol": rtol * scale, "atol": atol * scale}

    return of
