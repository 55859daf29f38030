"""Write tests/data/processor_goldens.json with transformers' own processors: the reference for ours.

Needs an environment in which transformers' video processors work, so one with a torchvision that matches torch (the
project itself does without) and, for SmolVLM, num2words. `python tools/make_processor_goldens.py`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "backbones"), str(ROOT / "tools")]

from torchvision_on_cpu import import_torchvision  # noqa: E402

import_torchvision()

import torchvision  # noqa: E402
import transformers  # noqa: E402
from frames import golden_frames  # noqa: E402
from transformers import (  # noqa: E402
    AutoProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMVideoProcessor,
)

from sharp_demo.backbones.tiny import TinyShape, write_checkpoint  # noqa: E402

SIZES = {
    "landscape": (5, 360, 640),
    "portrait": (4, 640, 360),
    "square": (3, 200, 200),
    "model size": (2, 384, 384),
    "one frame": (1, 48, 64),
    "tiny": (2, 24, 18),
    "large": (2, 1080, 1920),
    "long": (9, 90, 160),
}
SIGLIP = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 384, "width": 384}, "resample": 3}
QWEN = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
SMOL = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 1,
    "size": {"longest_edge": 2048},
    "max_image_size": {"longest_edge": 512},
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
}
QWEN3 = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 4096, "longest_edge": 25165824},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
# Preprocessor values and the sizes they are tried on: as published, class defaults, and variations of the file.
CONFIGS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llava-onevision published": ("llava-onevision", SIGLIP | {"rescale_factor": 0.00392156862745098}, list(SIZES)),
    "llava-onevision class defaults": ("llava-onevision", {}, ["landscape", "tiny"]),
    "qwen2-vl published": ("qwen2-vl", QWEN | {"cap_pixels_per_frame": False}, list(SIZES)),
    "qwen2-vl class defaults": ("qwen2-vl", {"cap_pixels_per_frame": False}, ["landscape", "portrait", "one frame"]),
    "qwen2-vl 360 x 420": ("qwen2-vl", QWEN | {"max_pixels": 151_200, "cap_pixels_per_frame": False}, list(SIZES)),
    "qwen2-vl capped": (
        "qwen2-vl",
        QWEN | {"cap_pixels_per_frame": True, "max_video_tokens": 500},
        ["landscape", "long", "large"],
    ),
    "qwen2-vl small patches": (
        "qwen2-vl",
        {"size": {"shortest_edge": 1536, "longest_edge": 6144}, "patch_size": 8, "cap_pixels_per_frame": False},
        ["landscape", "portrait", "square"],
    ),
    "qwen3-vl published": (
        "qwen3-vl",
        QWEN3 | {"cap_pixels_per_frame": False},
        [size for size in SIZES if size != "one frame"],  # which it refuses
    ),
    "qwen3-vl class defaults": ("qwen3-vl", {"cap_pixels_per_frame": False}, ["landscape", "portrait", "long"]),
    "qwen3-vl capped": (
        "qwen3-vl",
        QWEN3 | {"cap_pixels_per_frame": True, "max_video_tokens": 100},
        ["landscape", "long", "tiny"],
    ),
    "smolvlm2 published": ("smolvlm2", SMOL, list(SIZES)),
    "smolvlm2 without size": (
        "smolvlm2",
        {key: value for key, value in SMOL.items() if key != "size"},
        ["landscape", "portrait", "tiny"],
    ),
    "smolvlm2 384": (
        "smolvlm2",
        SMOL | {"size": {"longest_edge": 1920}, "max_image_size": {"longest_edge": 384}},
        ["landscape", "one frame", "long"],
    ),
}
CLASSES = {
    "llava-onevision": LlavaOnevisionVideoProcessor,
    "qwen2-vl": Qwen2VLVideoProcessor,
    "qwen2.5-vl": Qwen2VLVideoProcessor,
    "qwen3-vl": Qwen3VLVideoProcessor,
    "smolvlm2": SmolVLMVideoProcessor,
}
TIMED = ("qwen2.5-vl", "qwen3-vl", "smolvlm2")  # their prompts or positions say when a frame was taken
STEP, FPS = 45, 30  # every 45th frame of a clip of 30 a second
QUESTIONS = ["What is the person doing?", "Which letter?\nA. K\nB. M", "¿Qué hay en el vídeo? 你好"]


def describe(pixels: torch.Tensor) -> dict[str, Any]:
    flat = pixels.contiguous().flatten()
    picks = torch.linspace(0, len(flat) - 1, 12).long()
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return {"shape": list(pixels.shape), "sha256": digest, "picks": picks.tolist(), "samples": flat[picks].tolist()}


def pixel_goldens() -> list[dict[str, Any]]:
    goldens = []
    for title, (family, values, sizes) in CONFIGS.items():
        official = CLASSES[family](**copy.deepcopy(values))  # SmolVLM's writes into them
        for size in sizes:
            output = official(
                torch.from_numpy(golden_frames(*SIZES[size])).permute(0, 3, 1, 2),
                return_tensors="pt",
                do_sample_frames=False,
            )
            golden = {"config": title, "family": family, "preprocessor": values, "case": size, "frames": SIZES[size]}
            golden |= describe(output["pixel_values" if family == "smolvlm2" else "pixel_values_videos"])
            golden["grid"] = output["video_grid_thw"].tolist() if "video_grid_thw" in output else None
            goldens.append(golden)
    return goldens


def official_dicts() -> list[dict[str, Any]]:
    """What `VideoPreprocessor.from_official` reads off each official object."""
    return [
        {
            "family": family,
            "preprocessor": values,
            "to_dict": json.loads(CLASSES[family](**copy.deepcopy(values)).to_json_string()),
        }
        for family, values, _ in CONFIGS.values()
    ]


def prompt_goldens() -> list[dict[str, Any]]:
    goldens = []
    with tempfile.TemporaryDirectory() as folder:
        for family in CLASSES:
            checkpoint = write_checkpoint(Path(folder) / family, family, TinyShape())
            official = AutoProcessor.from_pretrained(checkpoint)
            for question in QUESTIONS:
                for frames in (4, 5):
                    video = torch.from_numpy(golden_frames(frames, 60, 80)).permute(0, 3, 1, 2)
                    content = [{"type": "video"}, {"type": "text", "text": question}]
                    text = official.apply_chat_template(
                        [{"role": "user", "content": content}], add_generation_prompt=True
                    )
                    clip = {
                        "fps": FPS,
                        "total_num_frames": STEP * frames,
                        "frames_indices": list(range(0, STEP * frames, STEP)),
                    }
                    told = {"video_metadata": [clip]} if family in TIMED else {}
                    output = official(text=[text], videos=[video], return_tensors="pt", do_sample_frames=False, **told)
                    kept = ("input_ids", "mm_token_type_ids", "attention_mask")
                    tensors = {key: output[key][0].tolist() for key in kept if key in output}
                    times = {"times": [STEP * frame / FPS for frame in range(frames)]} if told else {}
                    goldens.append({"family": family, "question": question, "frames": frames, **times, **tensors})
    return goldens


def main() -> None:
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, transformers)}
    goldens = {
        "made_with": versions,
        "pixels": pixel_goldens(),
        "prompts": prompt_goldens(),
        "official": official_dicts(),
    }
    target = ROOT / "tests" / "data" / "processor_goldens.json"
    lines = [f'"made_with": {json.dumps(versions)}']
    for key in ("pixels", "prompts", "official"):
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(golden) for golden in goldens[key]) + "\n]")
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
