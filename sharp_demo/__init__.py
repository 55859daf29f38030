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
    from sharp_demo.pruning.evs import EVS
    from sharp_demo.pruning.fastv import FastV
    from sharp_demo.pruning.feather import Feather
    from sharp_demo.pruning.floors import Latest, Random, Uniform
    from sharp_demo.pruning.framefusion import FrameFusion
    from sharp_demo.pruning.holitom import HoliTom
    from sharp_demo.pruning.pdrop import PDrop
    from sharp_demo.pruning.registry import methods
    from sharp_demo.pruning.sharp import ShaRP
    from sharp_demo.pruning.sharpv import SharpV
    from sharp_demo.pruning.vanilla import Vanilla
    from sharp_demo.pruning.visionzip import VisionZip
    from sharp_demo.pruning.with_sharp import HoliTomShaRP, VisionZipShaRP
    from sharp_demo.settings import Settings
    from sharp_demo.video import Clip, decode

__version__ = "0.1.0"

__all__ = [
    "EVS",
    "Backbone",
    "Clip",
    "FastV",
    "Feather",
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
    "VisionZip",
    "VisionZipShaRP",
    "__version__",
    "answer",
    "decode",
    "load",
    "methods",
]

_HOMES = {
    "backbones.load": ("Backbone", "load"),
    "engine.generation": ("answer",),
    "pruning.evs": ("EVS",),
    "pruning.fastv": ("FastV",),
    "pruning.feather": ("Feather",),
    "pruning.floors": ("Latest", "Random", "Uniform"),
    "pruning.framefusion": ("FrameFusion",),
    "pruning.holitom": ("HoliTom",),
    "pruning.pdrop": ("PDrop",),
    "pruning.registry": ("methods",),
    "pruning.sharp": ("ShaRP",),
    "pruning.sharpv": ("SharpV",),
    "pruning.vanilla": ("Vanilla",),
    "pruning.visionzip": ("VisionZip",),
    "pruning.with_sharp": ("HoliTomShaRP", "VisionZipShaRP"),
    "settings": ("Settings",),
    "video": ("Clip", "decode"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
