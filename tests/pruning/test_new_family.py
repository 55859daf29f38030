"""A model family is one class and one line: SmolVLM, much reduced, is in every menu and every method prunes it.

It takes the place of the registered SmolVLM2 here. What it does otherwise than the other families: text stands between
its frames, its features go by "image", its decoder is a Llama by another name, and its config knows no video.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gradio as gr
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from sharp_demo.backbones import families
from sharp_demo.backbones.families import family_of, hub_models, published
from sharp_demo.backbones.family import Encoded, Family, Times, TinyShape, tiny_text_config
from sharp_demo.backbones.features import black_video, model_inputs
from sharp_demo.backbones.llava_onevision import LlavaOnevisionVideo
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.preprocessing import Grid
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.received import attention_received
from sharp_demo.backbones.tiny import write_checkpoint
from sharp_demo.backbones.view import TowerShape
from sharp_demo.cli import main
from sharp_demo.engine import Engine
from sharp_demo.errors import ModelError
from sharp_demo.page.build import build_ui
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.floors import Uniform
from sharp_demo.pruning.framefusion import FrameFusion
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import list_methods
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, greedy, masked, scenes
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

__all__ = ["generate"]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'video' else '\n' + part['text'] }}{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


class StampedVideo(LlavaOnevisionVideo):
    official = "SmolVLMVideoProcessor"

    def arrange(self, x: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": x[None]}


class Stamped(Family):
    name = "stamped"
    title = "Stamped"
    model_type = "smolvlm"
    model_class = "SmolVLMForConditionalGeneration"
    preprocessor = StampedVideo
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
    features_key = "image"
    pixels_key = "pixel_values"
    text_between = True
    merge_similarity = 0.6
    merge_queries = 1
    chat_template = TEMPLATE
    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")
    small_tower: ClassVar[Mapping[str, int]] = {"num_hidden_layers": 1}

    def visual_token_id(self, config: PreTrainedConfig) -> int:
        return config.image_token_id

    def placeholder_ids(self, config: PreTrainedConfig) -> list[int]:
        return [config.image_token_id]

    def frames_per_token(self, config: PreTrainedConfig) -> int:
        return 1

    def shape(self, config: PreTrainedConfig, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        return placeholders // side**2, side, side

    def placeholders(self, config: PreTrainedConfig, frames: int, grid: Grid | None = None) -> int:
        _, rows, cols = self.shape(config, 0, grid)
        return frames * rows * cols

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

    def text_model(self, model: PreTrainedModel) -> nn.Module:
        return model.model.text_model

    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        values = pixels["pixel_values"].to(model.device, model.dtype)
        parts = [model.get_image_features(part).pooler_output[0] for part in values.split(chunk_frames, 1)]
        return Encoded(torch.cat(parts), values.shape[1])

    def tower(self, model: PreTrainedModel) -> nn.Module:
        return model.model.vision_model

    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        tower, scale = config["vision_config"], config["scale_factor"] ** 2
        patches, width = (tower["image_size"] // tower["patch_size"]) ** 2, tower["hidden_size"]
        former = patches * width * config["text_config"]["hidden_size"]
        head_dim = width // tower["num_attention_heads"]
        layers, values = tower["num_hidden_layers"], 3 * tower["patch_size"] ** 2
        assert patches == tokens * scale
        return TowerShape(width, tower["intermediate_size"], layers, head_dim, patches, values, former)

    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, Callable[..., tuple[Tensor, Tensor]]]:
        return model.model.vision_model.encoder.layers[-1].self_attn, read

    def preprocessor_values(self, config: PreTrainedConfig) -> dict[str, Any]:
        return {"size": {"height": config.vision_config.image_size, "width": config.vision_config.image_size}}

    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        return {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            "image_token_id": ids["<image>"],
            "scale_factor": 2,
            "tie_word_embeddings": shape.tied,
            "text_config": {"model_type": "llama", **tiny_text_config(shape, vocab_size, ids)},
            "vision_config": {
                "hidden_size": shape.vision_width,
                "intermediate_size": shape.vision_mlp,
                "num_hidden_layers": shape.vision_layers,
                "num_attention_heads": shape.vision_heads,
                "image_size": 6 * shape.patch_size,
                "patch_size": shape.patch_size,
            },
        }

    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        side = 6 * shape.patch_size
        return {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": side, "width": side}}

    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        return {}


def read(
    model: PreTrainedModel, attention: nn.Module, hidden: Tensor, kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """The mean over the 2 x 2 patches of a token, which pixel shuffle joins."""
    shape = (*hidden.shape[:-1], attention.num_heads, attention.head_dim)
    queries, keys = (proj(hidden).view(shape).transpose(1, 2) for proj in (attention.q_proj, attention.k_proj))
    received = torch.stack([attention_received(q, k, attention.scale) for q, k in zip(queries, keys, strict=True)])
    both = torch.cat((received[..., None], keys.float().mean(1)), -1)
    tokens = both.view(len(both), 3, 2, 3, 2, -1).mean((2, 4)).flatten(0, 2)
    return tokens[:, 0], tokens[:, 1:]


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


@torch.no_grad()
def test_the_whole_video_is_its_plain_model_bit_for_bit(prompt: Prompt) -> None:
    plain = {**prompt.tokens, **prompt.pixels}
    expected, length = prompt.model(**plain).logits, prompt.length
    answer = prompt.model.generate(**plain, max_new_tokens=6, do_sample=False)
    for method in (FastV(retention=1), ShaRP(retention=1), FrameFusion(retention=1)):
        with method(prompt.model, prompt.backbone.processor):
            assert torch.equal(prompt.model(**prompt.inputs(), use_cache=True).logits, expected)
            assert torch.equal(prompt.model.generate(**plain, max_new_tokens=6, do_sample=False), answer)
    assert answer.shape[1] > length


@pytest.mark.parametrize(
    "method", [FastV(retention=0.3), Uniform(retention=0.3, layer=0), FastV(retention=0.1, layer=3)]
)
def test_dropping_equals_masking(method: Method, prompt: Prompt) -> None:
    with method(prompt.model) as run:
        ids, logits, _ = greedy(prompt)
    ((layer, _),) = method.schedule(4, 1)
    with masked(prompt, layer, run.kept):
        expected_ids, expected, _ = greedy(prompt)
    assert ids == expected_ids
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)


@torch.no_grad()
def test_the_bias_is_the_whole_black_run(prompt: Prompt) -> None:
    processor = prompt.backbone.processor
    with ShaRP(retention=0.4, segm=False)(prompt.model, processor) as run:
        greedy(prompt, steps=1)
    black = black_video(prompt.model, processor.video, prompt.layout, prompt.features)
    with ShaRP(retention=0.4, segm=False, posc=False)(prompt.model) as whole:
        prompt.model(**model_inputs(prompt.tokens, black), use_cache=True)
    torch.testing.assert_close(run.scores["bias"], whole.scores["raw"], atol=1e-6, rtol=1e-4)


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
