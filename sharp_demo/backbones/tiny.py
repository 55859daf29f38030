"""Write small checkpoints, laid out as the published repositories are: random ones for tests, trained ones to embed.

Nothing is downloaded: the tokenizer is learned from the few sentences below or from given ones.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import AutoConfig, Qwen2Tokenizer

from sharp_demo.backbones.families import Family, family_of_type
from sharp_demo.backbones.processor import CLIP_MEAN, CLIP_STD

CARD = "card.json"  # {"trained": bool, "note": str, "default_frames": int, "revision": str}

# What questions about short clips are made of; other text falls back to bytes.
SENTENCES = """
What is happening in this video? What is the person doing? What happens at the end? What happens first?
What color is the car? What shape is the red object? Which letter is on the black plate? Which one comes last?
Where is the dog? Where does the man go after the door opens? Who is in the room? Who appears before the woman?
When does the scene change? When do they leave? Why is the child running? How many people are there in the scene?
How many times does the ball bounce? Is there a cat in the video? Are there any trees? Does the background change?
Describe the video in one sentence. Describe the scene in detail. Answer with the letter of the option.
background of the blue star, color of the circle in the green scene, shape of the yellow one in the purple scene
letter in the orange scene, background of the first scene, background of the last scene, direction of the motion
red green blue yellow purple orange cyan magenta pink brown black white gray gold silver dark light bright
circle square triangle star cross diamond heart ring arrow box ball cup chair table window door house street road
person people man woman boy girl child baby hand face head dog cat bird horse fish car bus truck train bike boat
walk run jump sit stand hold open close take put move turn fall throw catch play cook eat drink read write talk
left right up down top bottom middle front behind near far between inside outside above below before after during
one two three four five six seven eight nine ten yes no not only same different first second third next last again
a an the this that these those of in on at to from with by for and or as it its is are was were be been has have
"""

CHATML_LLAVA_ONEVISION = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHATML_QWEN2_VL = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = {
    "llava-onevision": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    "qwen2-vl": (
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
}


@dataclass(frozen=True)
class TinyShape:
    """Widths and depths of a small model; `cells` bounds the merged tokens of a Qwen2-VL frame."""

    width: int = 64
    mlp: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vision_width: int = 32
    vision_mlp: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    image_size: int = 40
    patch_size: int = 8
    cells: int = 12
    merges: int = 64
    tied: bool = True
    initializer_range: float = 0.15


def write_checkpoint(
    folder: str | Path,
    family: str,
    shape: TinyShape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    card: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
    sentences: str = SENTENCES,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint of `family` ("llava-onevision" or "qwen2-vl") into `folder`, replacing it.

    The weights are random, or `weights` (a state dict of such a model); the tokenizer is learned from `sentences`.
    The same arguments give the same bytes. Files: config.json, safetensors (with an index when sharded),
    tokenizer, chat_template.json, preprocessor_config.json, processor_config.json, generation_config.json, and
    card.json if given.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry = family_of_type(family.replace("-", "_"))
    tokenizer = train_tokenizer(SPECIAL_TOKENS[family], shape.merges, sentences)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS[family]}
    config = CONFIGS[family](shape, ids, len(tokenizer)) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    model = _random_model(entry, config, seed)
    if weights is not None:
        model.load_state_dict(weights)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    files = {
        "config.json": config,
        "chat_template.json": {"chat_template": TEMPLATES[family]},
        "preprocessor_config.json": PREPROCESSORS[family](shape),
        "processor_config.json": PROCESSORS[family](shape),
        "generation_config.json": {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad},
    }
    if card is not None:
        files[CARD] = dict(card)
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def train_tokenizer(special_tokens: tuple[str, ...], merges: int, sentences: str = SENTENCES) -> Any:
    """A byte-level BPE tokenizer of the Qwen2 class: 256 bytes, `merges` merges, then `special_tokens`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    backend = Qwen2Tokenizer(unk_token=None, eos_token=None, pad_token=None)._tokenizer
    backend.train_from_iterator(sentences.strip().splitlines(), trainer)
    learned = json.loads(backend.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return tokenizer


def _random_model(family: Family, config: dict[str, Any], seed: int) -> Any:
    model_class = getattr(transformers, family.model_class)
    values = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    parsed = AutoConfig.for_model(**copy.deepcopy(values))  # it writes into nested dictionaries
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(parsed).eval()


def _text_config(shape: TinyShape, vocab_size: int, ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 32768,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": shape.initializer_range,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }


def _llava_config(shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_grid_pinpoints": [[shape.image_size, shape.image_size]],
        "tie_word_embeddings": shape.tied,
        "text_config": {"model_type": "qwen2", **_text_config(shape, vocab_size, ids)},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_mlp,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "vision_use_head": False,
        },
    }


def _qwen_config(shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
    half = shape.width // shape.heads // 2
    spatial = 3 * half // 8  # the published split, 16 : 24 : 24
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "rope_scaling": {"type": "mrope", "mrope_section": [half - 2 * spatial, spatial, spatial]},
        **_text_config(shape, vocab_size, ids),
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": shape.vision_layers,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.width,
            "num_heads": shape.vision_heads,
            "mlp_ratio": shape.vision_mlp // shape.vision_width,
            "patch_size": shape.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": shape.initializer_range,
        },
    }


def _llava_preprocessor(shape: TinyShape) -> dict[str, Any]:
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": [[shape.image_size, shape.image_size]],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": shape.image_size, "width": shape.image_size},
    }


def _qwen_preprocessor(shape: TinyShape) -> dict[str, Any]:
    cell = (2 * shape.patch_size) ** 2
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "min_pixels": shape.cells // 2 * cell,
        "max_pixels": shape.cells * cell,
        "patch_size": shape.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


def _llava_processor(shape: TinyShape) -> dict[str, Any]:
    return {
        "image_token": "<image>",
        "num_image_tokens": (shape.image_size // shape.patch_size) ** 2,
        "processor_class": "LlavaOnevisionProcessor",
        "video_token": "<video>",
        "vision_feature_select_strategy": "full",
    }


TEMPLATES = {"llava-onevision": CHATML_LLAVA_ONEVISION, "qwen2-vl": CHATML_QWEN2_VL}
CONFIGS = {"llava-onevision": _llava_config, "qwen2-vl": _qwen_config}
PREPROCESSORS = {"llava-onevision": _llava_preprocessor, "qwen2-vl": _qwen_preprocessor}
PROCESSORS = {"llava-onevision": _llava_processor, "qwen2-vl": lambda shape: {"processor_class": "Qwen2VLProcessor"}}
