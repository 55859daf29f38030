"""Write the untrained embedded checkpoints into assets/models: `python tools/make_tiny_checkpoints.py [FOLDER]`.

Random weights of the shape of the trained models, deterministic from SEED; each file stays below 10 MB.
"""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sharp_demo.backbones.tiny import TinyShape, write_checkpoint  # noqa: E402

SEED = 0
# 7 x 7 tokens a frame: 112 pixels in patches of 8, pooled (LLaVA-OneVision) or merged (Qwen2-VL) 2 x 2.
SHAPE = TinyShape(
    width=160,
    mlp=320,
    layers=8,
    heads=4,
    kv_heads=2,
    vision_width=128,
    vision_mlp=256,
    vision_layers=3,
    vision_heads=4,
    image_size=112,
    patch_size=8,
    cells=49,
    merges=512,
)
CARD = {
    "trained": False,
    "note": "Untrained: random weights in the shape of a small model, so its answers are meaningless.",
    "default_frames": 16,
    "revision": f"untrained-{SEED}",
}


def main(target: Path) -> None:
    for family in ("llava-onevision", "qwen2-vl"):
        folder = write_checkpoint(target / f"tiny-{family}", family, SHAPE, seed=SEED, dtype=torch.bfloat16, card=CARD)
        for file in sorted(folder.iterdir()):
            print(f"{file.stat().st_size:>10,}  {file.relative_to(target)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "models")
