"""What must start quickly, or run where there is no torch, does not load it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules",
    [
        "sharp_demo.engine, sharp_demo.engine.condition, sharp_demo.errors, sharp_demo.logs, sharp_demo.records",
        "sharp_demo.doctor, sharp_demo.memory, sharp_demo.recent, sharp_demo.settings, sharp_demo.video.digest",
        "sharp_demo.views.report, sharp_demo.views.sweep, sharp_demo.views.tables, sharp_demo.views.walkthrough",
    ],
)
def test_plain_data_and_its_views_load_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
