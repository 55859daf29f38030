"""Where the visual tokens are, for prompts that hold one video and for those that do not."""

from types import SimpleNamespace

import pytest
import torch

from sharp_demo.backbones.families import visual_layout
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.errors import ModelError

LLAVA = SimpleNamespace(
    model_type="llava_onevision",
    image_token_id=1,
    video_token_id=2,
    vision_config=SimpleNamespace(image_size=40, patch_size=8),
)
QWEN = SimpleNamespace(
    model_type="qwen2_vl",
    image_token_id=1,
    video_token_id=2,
    vision_config=SimpleNamespace(spatial_merge_size=2, temporal_patch_size=2),
)
GRID = torch.tensor([[3, 4, 6]])


def prompt(*runs: tuple[int, int]) -> torch.Tensor:
    return torch.tensor([token for token, count in runs for _ in range(count)])


def test_llava_last_placeholder_is_text() -> None:
    layout = visual_layout(LLAVA, prompt((9, 4), (2, 2 * 9 + 1), (9, 5)))
    assert (layout.frames, layout.rows, layout.cols, layout.frames_per_token) == (2, 3, 3, 1)
    assert layout.index.tolist() == list(range(4, 22))
    assert layout.length == 4 + 19 + 5
    assert len(layout) == 18


def test_rows_are_inside_frames_and_columns_inside_rows() -> None:
    layout = visual_layout(QWEN, prompt((9, 2), (2, 18), (9, 1))[None], GRID)
    assert (layout.frames, layout.rows, layout.cols, layout.frames_per_token) == (3, 2, 3, 2)
    seen = list(zip(layout.frame.tolist(), layout.row.tolist(), layout.col.tolist(), strict=True))
    assert seen == [(f, r, c) for f in range(3) for r in range(2) for c in range(3)]


@pytest.mark.parametrize(
    ("config", "ids", "grid", "message"),
    [
        (LLAVA, prompt((9, 4)), None, "no video"),
        (LLAVA, prompt((2, 10), (9, 1), (2, 10)), None, "interrupted"),
        (LLAVA, prompt((2, 20)), None, "20 video placeholders"),
        (LLAVA, prompt((2, 1)), None, "not one video"),
        (LLAVA, prompt((2, 10), (1, 3)), None, "image"),
        (LLAVA, prompt((2, 10)).expand(2, -1), None, "batch has 2 prompts"),
        (QWEN, prompt((2, 18)), None, "video_grid_thw is missing"),
        (QWEN, prompt((2, 36)), GRID.expand(2, -1), "2 videos"),
        (QWEN, prompt((2, 17)), GRID, "17 video placeholders but the video has 3 x 2 x 3"),
        (QWEN, prompt((2, 9), (9, 1), (2, 9)), GRID, "interrupted"),
        (SimpleNamespace(model_type="llama"), prompt((2, 9)), None, "'llama' is not supported"),
    ],
)
def test_prompts_without_exactly_one_video(
    config: SimpleNamespace, ids: torch.Tensor, grid: torch.Tensor, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        visual_layout(config, ids, grid)


def test_record_gives_a_frame_the_mean_time_of_what_it_covers() -> None:
    layout = VisualLayout(torch.arange(12), frames=3, rows=2, cols=2, frames_per_token=2, length=20)
    record = layout.record([0.0, 1.0, 2.0, 4.0, 6.0])
    assert record.timestamps == (0.5, 3.0, 6.0)  # the fifth frame was padded with itself
    assert (record.tokens, record.frames_per_token) == (12, 2)
    with pytest.raises(ModelError, match="7 timestamps do not fit 3 layout frames"):
        layout.record([0.0] * 7)


def test_raw_model_config_and_inputs_are_enough(tiny: Backbone) -> None:
    grid = tiny.processor.video.grid(5, 60, 80)
    inputs = tiny.processor.prompt("Why?", frames=5, grid=grid)
    layout = visual_layout(tiny.model.config, inputs["input_ids"], inputs.get("video_grid_thw"))
    assert (inputs["input_ids"][0, layout.index] == tiny.processor.family.visual_token_id(tiny.model.config)).all()
    assert layout.frames == -(-5 // layout.frames_per_token)
    assert layout.length == inputs["input_ids"].shape[1]
