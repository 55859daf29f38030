"""Here every test that takes a tiny checkpoint takes one of each family."""

from collections.abc import Callable

import pytest

from sharp_demo.backbones.families import FAMILIES
from sharp_demo.backbones.load import Backbone


@pytest.fixture(params=[family.name for family in FAMILIES])
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Backbone]) -> Backbone:
    """One of each family in turn."""
    return tiny_of(request.param)
