"""The examples run as a reader would run them."""

import importlib.util
from pathlib import Path

import numpy as np


def test_extend_a_model():
    path = Path(__file__).parent.parent / "examples" / "extend_a_model.py"
    spec = importlib.util.spec_from_file_location("extend_a_model", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, maps, difference = example.main(count=8, epochs=1)
    assert model.name == "enlarged_heart"
    assert maps.shape == (4, 12, 12, 1) and np.isfinite(maps).all()
    assert difference < 1e-6
