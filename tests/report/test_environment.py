import getpass
import platform

import torch

import diffmatch
from diffmatch.report import environment


def test_versions_are_those_that_run():
    found = environment("cpu")
    assert found["diffmatch"] == diffmatch.__version__
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"] == platform.python_version()
    assert found["device"].startswith("cpu (")


def test_nothing_tells_who_and_where():
    text = " ".join(environment("cpu").values())
    assert platform.node() not in text.split()
    assert getpass.getuser() not in text.split()
