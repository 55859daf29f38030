"""What lmms-eval's entry-point group `lmms_eval.models` finds: the name `sharp_video` and the class behind it."""

from __future__ import annotations

import sys
from pathlib import Path

from lmms_eval.models.registry_v2 import ModelManifest

ROOT = Path(__file__).resolve().parents[2]  # installed editable, so this is the checkout


def manifest() -> ModelManifest:
    """Return the manifest, with the checkout's laboratory importable."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    return ModelManifest("sharp_video", simple_class_path="lab.paper.plugin.SharpVideo")
