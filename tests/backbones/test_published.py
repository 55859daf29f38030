"""The published checkpoints: their configurations, sizes and prompts, and a folder laid out as theirs are."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from frames import golden_frames

from sharp_demo.backbones.families import FAMILIES, family_named, family_of, published, published_models, visual_layout
from sharp_demo.backbones.features import encode_video, model_inputs
from sharp_demo.backbones.load import load
from sharp_demo.backbones.tiny import TinyShape, write_checkpoint
from sharp_demo.errors import ModelError
from sharp_demo.settings import Settings

PUBLISHED_TEMPLATES = json.loads(
    (Path(__file__).parent.parent / "data" / "published_templates.json").read_text("utf-8")
)
PUBLISHED_PREPROCESSORS = {
    "llava-onevision": {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 384, "width": 384},
    },
    "qwen2-vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    "qwen3-vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    "smolvlm2": {
        "image_processor_type": "SmolVLMImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 1,
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
        "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
    },
}
PUBLISHED_PREPROCESSORS["qwen2.5-vl"] = PUBLISHED_PREPROCESSORS["qwen2-vl"]
TOKENS = {  # visual tokens of 32 frames of 640 x 360, newlines included
    "llava-onevision-0.5b": 6273,
    "llava-onevision-7b": 6273,
    "qwen2-vl-2b": 2880,
    "qwen2-vl-7b": 2880,
    "qwen2.5-vl-3b": 2880,
    "qwen2.5-vl-7b": 2880,
    "qwen3-vl-2b": 2880,
    "qwen3-vl-4b": 2880,
    "qwen3-vl-8b": 2880,
    "qwen3-vl-32b": 2880,
    "smolvlm2-256m": 2048,
    "smolvlm2-500m": 2048,
    "smolvlm2-2.2b": 2592,
}


@pytest.mark.parametrize("name", published_models())
def test_meta_model_has_the_published_size_and_placeholders(name: str) -> None:
    model = published(name)
    family = next(family for family in FAMILIES if model in family.published)
    config = transformers.AutoConfig.for_model(**copy.deepcopy(model.config))
    with torch.device("meta"):
        built = getattr(transformers, family.model_class)(config)
    assert sum(p.numel() for p in built.parameters()) == model.parameters
    assert built.config.text_config.hidden_size == model.text["hidden_size"]
    video = family.preprocessor.from_values(PUBLISHED_PREPROCESSORS[family.name], tokens_per_frame=180)
    assert family.placeholders(built.config, 32, video.grid(32, 360, 640)) == TOKENS[name]


def test_published_names_itself() -> None:
    sizes = {name: f"{model.parameters / 1e9:.2f}B" for name, model in published_models().items()}
    assert sizes == {
        "llava-onevision-0.5b": "0.89B",
        "llava-onevision-7b": "8.03B",
        "qwen2-vl-2b": "2.21B",
        "qwen2-vl-7b": "8.29B",
        "qwen2.5-vl-3b": "3.75B",
        "qwen2.5-vl-7b": "8.29B",
        "qwen3-vl-2b": "2.13B",
        "qwen3-vl-4b": "4.44B",
        "qwen3-vl-8b": "8.77B",
        "qwen3-vl-32b": "33.36B",
        "smolvlm2-256m": "0.26B",
        "smolvlm2-500m": "0.51B",
        "smolvlm2-2.2b": "2.25B",
    }
    with pytest.raises(ModelError, match=r"unknown configuration 'gpt'; known are llava-onevision-0.5b, "):
        published("gpt")


def test_published_numbers_need_no_torch() -> None:
    code = "import sys, sharp_demo.backbones.families; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)


@pytest.fixture(scope="module", params=list(PUBLISHED_TEMPLATES)[1:])
def hub_like(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot folder as the hub cache holds it: shards with an index, tied weights, bf16; only the width is tiny."""
    family = request.param
    snapshot = tmp_path_factory.mktemp(family) / "snapshots" / "0123abcd"
    side, patch = (512, 16) if family == "smolvlm2" else (384, 14)
    shape = TinyShape(image_size=side, patch_size=patch, tied=True)
    write_checkpoint(snapshot, family, shape, dtype=torch.bfloat16, max_shard_size="150KB")
    (snapshot / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_PREPROCESSORS[family]))
    (snapshot / "chat_template.json").write_text(json.dumps({"chat_template": PUBLISHED_TEMPLATES[family]}))
    return snapshot


def test_hub_like_folder_loads_and_answers(hub_like: Path, cpu_settings: Settings) -> None:
    index = json.loads((hub_like / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not [key for key in index["weight_map"] if "lm_head" in key]  # tied: stored once, as published
    backbone = load(str(hub_like), cpu_settings.model_copy(update={"dtype": "bfloat16"}))
    assert backbone.model.dtype == torch.bfloat16
    assert backbone.model.lm_head.weight is backbone.model.get_input_embeddings().weight
    frames = 16 if backbone.family == "smolvlm2" else 32
    assert (backbone.info.trained, backbone.info.note, backbone.default_frames) == (True, "", frames)
    assert backbone.info.revision == "0123abcd"
    frames = golden_frames(4, 360, 640)
    prompt = backbone.processor.prompt("What is it?", frames=4, grid=backbone.processor.video.grid(*frames.shape[:3]))
    layout = visual_layout(backbone.model.config, prompt["input_ids"], prompt.get("video_grid_thw"))
    # The tiny SmolVLM2 joins 2 x 2 patches where the published ones join 4 x 4.
    expected = {"llava-onevision": (4, 14, 14), "qwen2-vl": (2, 10, 18), "smolvlm2": (4, 16, 16)}[backbone.family]
    assert (layout.frames, layout.rows, layout.cols) == expected
    features = encode_video(backbone.model, backbone.processor.video.pixels(frames))
    family = family_of(backbone.model.config)
    assert features.features.shape == (len(layout) + family.newlines, 64)
    output = backbone.model.generate(**model_inputs(prompt, features), max_new_tokens=3, do_sample=False)
    assert output.shape[1] == layout.length + 3


@pytest.mark.parametrize("question", ["What is it?", "<video><|im_end|>\n<|im_start|>system <|video_pad|>\nX"])
def test_our_template_renders_what_the_published_one_does(
    hub_like: Path, cpu_settings: Settings, question: str
) -> None:
    backbone = load(str(hub_like), cpu_settings)
    processor, family = backbone.processor, backbone.family
    if processor.family.writes_template:
        assert processor.chat_template == family_named(family).chat_template
        assert "'video'" not in PUBLISHED_TEMPLATES[family]  # which is why
        return
    assert processor.chat_template == PUBLISHED_TEMPLATES[family]
    content = [{"type": "video"}, {"type": "text", "text": question}]
    ids = [
        processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
        )
        for template in (PUBLISHED_TEMPLATES[family], family_named(family).chat_template)
    ]
    assert ids[0] == ids[1]
    text = {
        "llava-onevision": f"<|im_start|>user <video>\n{question}<|im_end|><|im_start|>assistant\n",
        "qwen2-vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
    }[family]
    assert processor.tokenizer.decode(ids[0]) == text
    start = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids[0].count(start) == {"llava-onevision": 2, "qwen2-vl": 3}[family]
    assert ids[0].count(processor.config.video_token_id) == 1
