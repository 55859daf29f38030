"""Write small checkpoints, laid out as the published repositories are: random ones for tests, trained ones to embed.

Nothing is downloaded: the tokenizer is learned from the few sentences below or from given ones.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedModel, Qwen2Tokenizer

from sharp_demo.backbones.families import family_named
from sharp_demo.backbones.family import Family, TinyShape

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
    """Write a checkpoint of the family named `family` into `folder`, replacing it.

    The weights are random, or `weights` (a state dict of such a model); the tokenizer is learned from `sentences`.
    The same arguments give the same bytes. Files: config.json, safetensors (with an index when sharded),
    tokenizer, chat_template.json, preprocessor_config.json, processor_config.json, generation_config.json, and
    card.json if given.
    """
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    entry = family_named(family)
    tokenizer = train_tokenizer(entry.special_tokens, shape.merges, sentences)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in entry.special_tokens}
    config = entry.tiny_config(shape, ids, len(tokenizer)) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    model = _random_model(entry, config, seed)
    if weights is not None:
        model.load_state_dict(weights)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    end, pad = ids[entry.end_token], ids["<|endoftext|>"]
    files = {
        "config.json": config,
        "chat_template.json": {"chat_template": entry.chat_template},
        "preprocessor_config.json": entry.tiny_preprocessor(shape),
        "processor_config.json": entry.tiny_processor(shape),
        "generation_config.json": {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad},
    }
    if card is not None:
        files[CARD] = dict(card)
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def train_tokenizer(special_tokens: tuple[str, ...], merges: int, sentences: str = SENTENCES) -> Qwen2Tokenizer:
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


def _random_model(family: Family, config: dict[str, Any], seed: int) -> PreTrainedModel:
    model_class = getattr(transformers, family.model_class)
    values = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype")}
    parsed = AutoConfig.for_model(**copy.deepcopy(values))  # it writes into nested dictionaries
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(parsed).eval()
