"""Hand-made results and frames shared by the view tests."""

import numpy as np
import pytest
from handmade import make_result

from sharp_demo.records import Result


@pytest.fixture
def results() -> list[Result]:
    return [make_result(method) for method in ("vanilla", "fastv", "feather", "sharp")]


@pytest.fixture
def clip() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), dtype=np.uint8)
