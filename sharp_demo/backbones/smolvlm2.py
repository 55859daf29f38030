"""SmolVLM2: square SigLIP frames shuffled into few tokens, a Llama decoder, and a time stamp before every frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones import siglip
from sharp_demo.backbones.family import Encoded, Family, Times, TinyShape, tiny_text_config
from sharp_demo.backbones.preprocessing import LANCZOS, Grid, VideoPreprocessor
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.view import TowerShape
from sharp_demo.errors import ModelError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from sharp_demo.backbones.family import SignalReader
    from sharp_demo.backbones.layout import VisualLayout
    from sharp_demo.backbones.merging import TowerLayer
else:
    np, torch, F = LazyModule("numpy"), LazyModule("torch"), LazyModule("torch.nn.functional")

TORCH_LANCZOS: Mapping[str, Any] = {"mode": "lanczos", "antialias": True, "align_corners": False}
LONGEST_SIDE = 4096  # transformers' bound on the first of the two resizes
EDGE, OVERVIEW = "<fake_token_around_image>", "<global-img>"

SIGLIP_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SIGLIP_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100_000.0,
}
SMOLLM2_360M = {
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "rope_theta": 100_000.0,
}
SMOLLM2_1_7B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rope_theta": 130_000.0,
}

# transformers writes videos by this template, whatever the checkpoint's own says: that one knows images only.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'video' else part['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)

ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def published_config(text: dict[str, Any], tower: dict[str, int], image: int, patch: int, scale: int) -> dict[str, Any]:
    """Return config.json of a hub repository."""
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": 49190,
        "scale_factor": scale,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama",
            **text,
            "head_dim": 64,
            "vocab_size": 49280,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        "vision_config": {"model_type": "smolvlm_vision", **tower, "image_size": image, "patch_size": patch},
    }


def in_words(number: int) -> str:
    """Return a number below 1,000 in English words, as the models read the count of frames."""
    if number < 20:
        return ONES[number]
    if number < 100:
        ten, one = divmod(number, 10)
        return TENS[ten - 2] + (f"-{ONES[one]}" if one else "")
    hundred, rest = divmod(number, 100)
    return f"{ONES[hundred]} hundred" + (f" and {in_words(rest)}" if rest else "")


@dataclass(frozen=True)
class SmolVLM2Video(VideoPreprocessor):
    """The longest side to `longest_side` first, then every frame to a square of `side`; both with Lanczos.

    Pixels are [1, T, 3, side, side].
    """

    official = "SmolVLMVideoProcessor"
    defaults: ClassVar[Mapping[str, Any]] = {
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
        "max_image_size": {"longest_edge": 364},
    }
    resample = LANCZOS

    longest_side: int
    side: int

    @classmethod
    def own_values(cls, values: Mapping[str, Any], tokens_per_frame: int | None) -> dict[str, Any]:
        # transformers puts the file's `size` over the one for videos, which the released files have too.
        size = values.get("size") or (values.get("video_sampling") or {}).get("video_size") or {"longest_edge": 4 * 364}
        sides = [dict(one).get("longest_edge") for one in (size, values["max_image_size"])]
        if None in sides:
            raise ModelError("preprocessor: size and max_image_size need longest_edge")
        return {"longest_side": sides[0], "side": sides[1]}

    def resized(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def resize(self, x: Tensor) -> Tensor:
        # A frame at a time: at the first of the two sizes a whole video would need a gigabyte.
        first = self._enlarged(*x.shape[2:])
        return torch.cat([_lanczos(_lanczos(frame, first), (self.side, self.side)) for frame in x.split(1)])

    def arrange(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": x[None]}

    def black_frame(self, layout: VisualLayout) -> Tensor:
        return torch.zeros(1, 3, self.side, self.side, dtype=torch.uint8)

    def _enlarged(self, height: int, width: int) -> tuple[int, int]:
        longest, aspect = min(LONGEST_SIDE, self.longest_side), width / height
        if width >= height:
            other = int(longest / aspect)
            return max(other + other % 2, 1), longest
        other = int(longest * aspect)
        return longest, max(other + other % 2, 1)


@cache
def torch_knows_lanczos() -> bool:
    """Return whether this torch resizes with Lanczos; older releases do not."""
    try:
        F.interpolate(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), size=(1, 1), **TORCH_LANCZOS)
    except (NotImplementedError, ValueError):
        return False
    return True


def _lanczos(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 frames [T, 3, H, W]; where Pillow has to, grey levels differ by two at most."""
    if size == tuple(x.shape[2:]):
        return x
    if torch_knows_lanczos():
        return F.interpolate(x, size=size, **TORCH_LANCZOS)
    from PIL import Image

    frames = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in x]
    resized = [np.asarray(frame.resize(size[::-1], Image.Resampling.LANCZOS)) for frame in frames]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


class SmolVLM2(Family):
    """SmolVLM2 with a Llama decoder."""

    name = "smolvlm2"
    title = "SmolVLM2"
    model_type = "smolvlm"
    model_class = "SmolVLMForConditionalGeneration"
    preprocessor = SmolVLM2Video
    published = (  # sizes follow from the configurations
        PublishedModel(
            "smolvlm2-256m",
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            published_config(SMOLLM2_135M, SIGLIP_BASE, image=512, patch=16, scale=4),
            256_484_928,
        ),
        PublishedModel(
            "smolvlm2-500m",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            published_config(SMOLLM2_360M, SIGLIP_BASE, image=512, patch=16, scale=4),
            507_482_304,
        ),
        PublishedModel(
            "smolvlm2-2.2b",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            published_config(SMOLLM2_1_7B, SIGLIP_SO400M, image=384, patch=14, scale=3),
            2_246_784_880,
        ),
    )
    default_frames = 16
    features_key = "image"
    pixels_key = "pixel_values"
    text_between = True
    merge_similarity = 0.6
    merge_queries = 1
    chat_template = CHAT_TEMPLATE
    writes_template = True
    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", EDGE, "<image>", OVERVIEW, "<end_of_utterance>")
    end_token = "<end_of_utterance>"
    small_tower: ClassVar[Mapping[str, int]] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }

    def visual_token_id(self, config: PreTrainedConfig) -> int:
        return int(config.image_token_id)

    def placeholder_ids(self, config: PreTrainedConfig) -> list[int]:
        return [int(config.image_token_id)]

    def frames_per_token(self, config: PreTrainedConfig) -> int:
        return 1

    def shape(self, config: PreTrainedConfig, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        side = self._side(config)
        return placeholders // side**2, side, side

    def placeholders(self, config: PreTrainedConfig, frames: int, grid: Grid | None = None) -> int:
        return int(frames * self._side(config) ** 2)

    def message_text(self, frames: int, times: Times | None = None) -> tuple[str, str]:
        """Say how many frames follow and how long they last: the time of the last one, as transformers takes it."""
        times = range(frames) if times is None else times
        intro = f"You are provided the following series of {in_words(frames)} frames from a "
        return f"{intro}{timedelta(seconds=int(times[-1]))} [H:MM:SS] video.\n{_stamp(times[0])}", "\n\n"

    def video_ids(
        self,
        config: PreTrainedConfig,
        encode: Callable[[str], list[int]],
        frames: int,
        grid: Grid | None = None,
        times: Times | None = None,
    ) -> list[int]:
        frame = [self.visual_token_id(config)] * self.placeholders(config, 1)
        ids = encode(EDGE + OVERVIEW) + frame
        for time in (range(frames) if times is None else times)[1:]:
            ids += encode(EDGE + _stamp(time) + EDGE + OVERVIEW) + frame
        return ids + encode(EDGE)

    def text_model(self, model: PreTrainedModel) -> nn.Module:
        return model.model.text_model

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        values = pixels["pixel_values"].to(model.device, model.dtype)
        parts = [model.get_image_features(part).pooler_output[0] for part in values.split(chunk_frames, 1)]
        return Encoded(torch.cat(parts), values.shape[1])

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_model

    def tower_layers(self, model: PreTrainedModel) -> Sequence[TowerLayer]:
        return siglip.tower_layers(model.model.vision_model.encoder.layers)

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        tower = config["vision_config"]
        return siglip.tower_shape(tower, tower["hidden_size"] * config["text_config"]["hidden_size"])

    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, SignalReader]:
        return model.model.vision_model.encoder.layers[-1].self_attn, _read

    def preprocessor_values(self, config: PreTrainedConfig) -> dict[str, Any]:
        return {"max_image_size": {"longest_edge": config.vision_config.image_size}}

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            "image_token_id": ids["<image>"],
            "scale_factor": 2,
            "tie_word_embeddings": shape.tied,
            "text_config": {"model_type": "llama", **tiny_text_config(shape, vocab_size, ids)},
            "vision_config": {
                "model_type": "smolvlm_vision",
                **siglip.tiny_tower(shape),
                "image_size": self._tiny_side(shape),
                "initializer_range": shape.initializer_range,
            },
        }

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        side = self._tiny_side(shape)
        return {
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": LANCZOS,
            "size": {"longest_edge": 2 * side},
            "max_image_size": {"longest_edge": side},
            "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}},
        }

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        tokens = (self._tiny_side(shape) // shape.patch_size // 2) ** 2
        return {"processor_class": "SmolVLMProcessor", "image_seq_len": tokens}

    def _tiny_side(self, shape: TinyShape) -> int:
        """Pixels of a frame's side: a whole number of tokens, 2 x 2 patches each, as near as can be to the shape's."""
        return -(-shape.image_size // (2 * shape.patch_size)) * 2 * shape.patch_size

    def _side(self, config: PreTrainedConfig) -> int:
        return int(config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor)


def _stamp(time: float) -> str:
    return f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:"


def _read(
    model: PreTrainedModel, attention: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    both = siglip.patch_signals(attention, hidden)
    # Pixel shuffle joins a square of patches into a token.
    square = model.config.scale_factor
    side = model.config.vision_config.image_size // model.config.vision_config.patch_size // square
    tokens = both.view(len(both), side, square, side, square, -1).mean((2, 4)).flatten(0, 2)
    return tokens[:, 0], tokens[:, 1:]
