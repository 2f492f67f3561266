import keras
import numpy as np
import pytest


@pytest.fixture
def films():
    """Five films of noise, float32 (5, 8, 8, 1)."""
    return np.random.default_rng(0).random((5, 8, 8, 1)).astype("float32")


@pytest.fixture
def half_precision():
    """Layers that are built from now on compute in bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")
