"""Visual-token pruning for video LLMs: `import sharp_demo as sharp` is the library.

`sharp.load`, `sharp.decode`, `sharp.answer`, `sharp.methods()` and one class per method (`sharp.ShaRP`, ...). A name is
imported when it is first asked for, so the import itself stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharp_demo.backbones.load import Backbone, load
    from sharp_demo.engine.generation import answer
    from sharp_demo.pruning.cdpruner import CDPruner
    from sharp_demo.pruning.dart import DART
    from sharp_demo.pruning.divprune import DivPrune
    from sharp_demo.pruning.dycoke import DyCoke
    from sharp_demo.pruning.evs import EVS
    from sharp_demo.pruning.fastv import FastV
    from sharp_demo.pruning.fastvid import FastVID
    from sharp_demo.pruning.feather import Feather
    from sharp_demo.pruning.flashvid import FlashVID
    from sharp_demo.pruning.floors import Latest, Random, Uniform
    from sharp_demo.pruning.framefusion import FrameFusion
    from sharp_demo.pruning.holitom import HoliTom
    from sharp_demo.pruning.pdrop import PDrop
    from sharp_demo.pruning.registry import methods
    from sharp_demo.pruning.sharp import ShaRP
    from sharp_demo.pruning.sharpv import SharpV
    from sharp_demo.pruning.vanilla import Vanilla
    from sharp_demo.pruning.vidcom2 import VidCom2
    from sharp_demo.pruning.visionzip import VisionZip
    from sharp_demo.pruning.with_sharp import HoliTomShaRP, VidCom2ShaRP, VisionZipShaRP
    from sharp_demo.settings import Settings
    from sharp_demo.video import Clip, decode

__version__ = "0.1.0"

__all__ = [
    "DART",
    "EVS",
    "Backbone",
    "CDPruner",
    "Clip",
    "DivPrune",
    "DyCoke",
    "FastV",
    "FastVID",
    "Feather",
    "FlashVID",
    "FrameFusion",
    "HoliTom",
    "HoliTomShaRP",
    "Latest",
    "PDrop",
    "Random",
    "Settings",
    "ShaRP",
    "SharpV",
    "Uniform",
    "Vanilla",
    "VidCom2",
    "VidCom2ShaRP",
    "VisionZip",
    "VisionZipShaRP",
    "__version__",
    "answer",
    "decode",
    "load",
    "methods",
]

_HOMES = {
    "Backbone": "backbones.load",
    "Clip": "video",
    "Settings": "settings",
    "answer": "engine.generation",
    "decode": "video",
    "load": "backbones.load",
    "methods": "pruning.registry",
}


def _classes() -> dict[str, Any]:
    """Return the registered methods by the names of their classes; a new one needs no line here to be found."""
    from sharp_demo.pruning.registry import METHODS

    return {method.__name__: method for method in METHODS}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if not name.startswith("_") and name in (classes := _classes()):
        return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_classes()})
