import json
import math
from pathlib import Path

import numpy as np
import torch

from diffmatch.cli.outcome import write_json
from diffmatch.cli.table import metric_table
from diffmatch.report import Metric


def test_measurements_are_valid_json(tmp_path):
    content = {
        "mean": np.float64(0.5),
        "bad": [math.nan, math.inf, 1.0],
        "closed": np.bool_(True),
        "shape": (64, 96, 64),
        "scalar": torch.tensor(2),
        "place": Path("out.glb"),
        "none": None,
        3: "three",
    }
    write_json(tmp_path / "out.json", content)
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "mean": 0.5,
        "bad": [None, None, 1.0],
        "closed": True,
        "shape": [64, 96, 64],
        "scalar": 2,
        "place": "out.glb",
        "none": None,
        "3": "three",
    }


def test_a_table_has_aligned_columns():
    text = metric_table([Metric("mean distance", 0.00123, "box"), Metric("triangles", 12345), Metric("open", False)])
    assert text.splitlines() == [
        "mean distance  0.00123  box",
        "triangles       12 345",
        "open                no",
    ]
    assert metric_table([]) == ""
