"""What a request says of the page's inputs: what is shown is compared with what stands in them now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sharp_demo.page.controls import KNOBS, knob_field
from sharp_demo.records import Request


def asked(request: Request) -> dict[str, Any]:
    """Return the values of the inputs, by name, that a request came from.

    The clip is its file's folder and name: equal names of two uploads differ by the folder. The answer's length and
    the seed are left out, and so are the options of methods that were not asked.
    """
    methods = {spec.name: spec for spec in request.methods}
    return {
        "video": "/".join(Path(request.video).parts[-2:]),
        "question": request.question,
        "methods": list(methods),
        "retention": round(100 * request.retention, 6),
        "match": request.match,
        "frames": request.frames or 0,
        **({"model": request.model} if request.model else {}),
        **{
            f"{method}.{name}": methods[method].options.get(name, knob_field(method, name).default)
            for method, name in KNOBS
            if method in methods
        },
    }
