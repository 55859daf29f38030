"""A model family is one class and one line: SmolVLM2 with another text between its frames is in every menu.

It takes the place of the registered SmolVLM2 here, and every method prunes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gradio as gr
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sharp_demo.backbones import families
from sharp_demo.backbones.families import family_of, hub_models, published
from sharp_demo.backbones.family import Times, TinyShape
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.preprocessing import Grid
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.smolvlm2 import SmolVLM2
from sharp_demo.backbones.tiny import write_checkpoint
from sharp_demo.cli import main
from sharp_demo.engine import Engine
from sharp_demo.errors import ModelError
from sharp_demo.page.build import build_ui
from sharp_demo.pruning.registry import list_methods
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, scenes
from tests.pruning.test_families import (
    test_dropping_equals_masking,
    test_the_bias_is_the_whole_black_run,
    test_the_whole_video_is_its_plain_model_bit_for_bit,
)
from tests.pruning.test_matrix import (
    RETENTIONS,
    check_cost,
    check_counts,
    check_interleaved,
    check_refusals,
    check_repeats,
    check_whole,
    matrix,
)
from tests.test_docs import generate
from tests.video.clips import write_clip

# Collected here, they run on this module's `prompt`.
__all__ = [
    "generate",
    "test_dropping_equals_masking",
    "test_the_bias_is_the_whole_black_run",
    "test_the_whole_video_is_its_plain_model_bit_for_bit",
]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'video' else '\n' + part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


class Stamped(SmolVLM2):
    """Another text between the frames, another template and checkpoint; the tower and the decoder are SmolVLM2's."""

    name = "stamped"
    title = "Stamped"
    published = (
        PublishedModel(
            "stamped-2b",
            "example/stamped-2b",
            {
                "model_type": "smolvlm",
                "text_config": {
                    "hidden_size": 2048,
                    "intermediate_size": 8192,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 32,
                    "num_key_value_heads": 32,
                    "vocab_size": 49280,
                },
            },
            2_246_784_880,
        ),
    )
    chat_template = TEMPLATE

    def message_text(self, frames: int, times: Times | None = None) -> tuple[str, str]:
        return "", ""

    def video_ids(
        self,
        config: PreTrainedConfig,
        encode: Callable[[str], list[int]],
        frames: int,
        grid: Grid | None = None,
        times: Times | None = None,
    ) -> list[int]:
        frame = [self.visual_token_id(config)] * self.placeholders(config, 1)
        times = range(frames) if times is None else times
        return [token for time in times for token in (*encode(f"at {time:.1f} s:"), *frame)]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        others = [family for family in families.FAMILIES if family.model_type != Stamped.model_type]
        patch.setattr(families, "FAMILIES", (*others, Stamped()))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stamped") / "tiny", "stamped", TinyShape())


@pytest.fixture(scope="module")
def stamped(folder: Path, cpu_settings: Settings) -> Backbone:
    return load(str(folder), cpu_settings)


@pytest.fixture(scope="module")
def prompt(stamped: Backbone) -> Prompt:
    return Prompt(stamped, scenes(10))


@pytest.fixture(scope="module")
def vanilla(prompt: Prompt) -> tuple[list[int], Tensor]:
    return greedy(prompt, steps=3)[:2]


def test_text_stands_between_its_frames_and_not_inside(prompt: Prompt) -> None:
    layout, ids = prompt.layout, prompt.tokens["input_ids"][0]
    assert (layout.frames, layout.rows, layout.cols) == (10, 3, 3)
    starts = layout.index[::9]
    assert torch.equal(layout.index, (starts[:, None] + torch.arange(9)).flatten())
    between = ids[layout.index[8] + 1 : starts[1]]
    assert prompt.backbone.processor.decode(between) == "at 1.0 s:"
    config, image = prompt.model.config, ids[layout.index[0]]
    split = torch.cat((ids[: starts[1] + 4], between, ids[starts[1] + 4 :]))
    with pytest.raises(ModelError, match="text interrupts the 9 video placeholders of a frame"):
        family_of(config).layout(config, split)
    with pytest.raises(ModelError, match="has 91 video placeholders but the video has 10 x 3 x 3 tokens"):
        family_of(config).layout(config, torch.cat((ids, image[None])))


def test_it_is_in_the_matrix_and_every_method_prunes_it(prompt: Prompt, vanilla: tuple[list[int], Tensor]) -> None:
    cases, _ = matrix("counts")
    assert len([case for case in cases if case[1] == "stamped"]) == len(list_methods()) * len(RETENTIONS)
    for name in list_methods():
        check_whole(name, prompt, vanilla)
        check_counts(name, prompt, 0.3)
        check_cost(name, prompt, 0.3)
    for name in ("sharp", "framefusion", "visionzip"):
        check_repeats(name, prompt, 0.3, vanilla)
        check_interleaved(name, prompt, 0.3)
        check_refusals(name, prompt, 0.3)


def test_it_is_in_the_menu_the_commands_and_the_documentation(
    folder: Path,
    cpu_settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    generate: ModuleType,
) -> None:
    engine = Engine(cpu_settings.model_copy(update={"model": str(folder)}))
    assert engine.models() == [engine.settings.model_name, *hub_models()]
    page = build_ui(engine, engine.settings)
    menus = [block for block in page.blocks.values() if isinstance(block, gr.Dropdown)]
    assert any("example/stamped-2b" in [value for _, value in menu.choices] for menu in menus)

    assert main(["flops", "--config", "stamped-2b", "--tokens", "1000", "--method", "fastv"]) == 0
    assert "2 x 1000, 22 x 200" in capsys.readouterr().out
    assert published("stamped-2b").parameters == 2_246_784_880
    row = "| Stamped | `stamped` | `SmolVLMForConditionalGeneration` | `stamped-2b` (example/stamped-2b, "
    assert row in generate.family_table()

    told: list[tuple[float, ...]] = []
    original = Stamped.video_ids

    def video_ids(self: Stamped, *args: Any) -> list[int]:
        told.append(args[-1])
        return original(self, *args)

    monkeypatch.setattr(Stamped, "video_ids", video_ids)
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "stamped.json"
    options = ["--model", str(folder), "--frames", "4", "--max-new-tokens", "2", "--retention", "0.5"]
    methods = ["--methods", "vanilla,fastv,sharp,visionzip"]
    assert main(["compare", str(clip), "What is it?", *methods, *options, "--json", str(out)]) == 0
    results = {result["method"]: result for result in json.loads(out.read_text())["results"]}
    assert results["vanilla"]["visual_per_layer"] == [36] * 4
    assert set(told) - {None} == {(0.2, 0.7, 1.2, 1.7)}  # the warm-up knows no times
    assert results["fastv"]["visual_per_layer"] == [36, 36, 18, 18]
    assert results["sharp"]["visual_per_layer"] == [36, 18, 18, 18]
