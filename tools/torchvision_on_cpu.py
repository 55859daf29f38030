"""Import torchvision next to a CPU build of torch: its wheel is a CUDA build and fails to register its C++ operators.

Two declarations are enough where no operator is called, as in transformers' video processors. As a script it runs the
module named behind it with torchvision importable: `python tools/torchvision_on_cpu.py lmms_eval --config ...`.
"""

from __future__ import annotations

import runpy
import sys

import torch


def import_torchvision() -> None:
    """Make `import torchvision` work, whatever torch's build."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401

        torch.torchvision_library = library  # alive as long as torch, or the declarations go


if __name__ == "__main__":
    import_torchvision()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
