"""What the rest of the code asks of a model family. Importing this loads no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from sharp_demo.backbones.preprocessing import Grid, VideoPreprocessor
from sharp_demo.backbones.published import PublishedModel
from sharp_demo.backbones.view import TowerShape
from sharp_demo.errors import ModelError, UnsupportedError
from sharp_demo.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

    from sharp_demo.backbones.layout import VisualLayout
    from sharp_demo.backbones.merging import TowerLayer

    # (model, attention module, its input, its keyword arguments) -> attention received [N], keys [N, head_dim]
    SignalReader = Callable[[PreTrainedModel, nn.Module, Tensor, Mapping[str, Any]], tuple[Tensor, Tensor]]
else:
    torch = LazyModule("torch")

Times = Sequence[float]  # seconds of the sampled frames


@dataclass(frozen=True)
class TinyShape:
    """Widths and depths of a small model; `cells` bounds the tokens of a frame that keeps its aspect."""

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


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the vision tower makes of a video.

    Attributes
    ----------
    features : [n, d] in prompt order, newlines included.
    frames : number of layout frames.
    injections : for each of the first decoder layers, [N, d] to add to the visual rows behind it; mostly none.
    """

    features: Tensor
    frames: int
    injections: tuple[Tensor, ...] = field(default=(), kw_only=True)


class Family(ABC):
    """One model family: a subclass in a module of its own holds all that is known of it.

    Attributes
    ----------
    name, title : the name in commands and records, and the one for people.
    model_type : of the checkpoint's config.
    model_class : transformers' class.
    preprocessor : frames to pixels.
    published : checkpoints on the hub, the smallest first.
    default_frames : sampled frames where nobody says how many.
    features_key : what `mm_encoder_outputs` calls the features of a video.
    injection_arguments : keyword arguments of the decoder that carry what `injections` reads.
    pixels_key : what the model calls the pixels of a video.
    newlines : the last placeholders, which carry the video's token id but are text.
    text_between : there is text between the frames (`video_ids` writes it).
    renumbers : positions may be renumbered once tokens are gone.
    merge_similarity, merge_queries : FrameFusion's threshold, and the last text queries that it scores by.
    chat_template, special_tokens, end_token : of small checkpoints.
    replaced_around : tokens on either side of the template's placeholder that the video's ids replace too.
    writes_template : `chat_template` holds for every checkpoint, whose own template knows no video.
    small_tower : values of `vision_config` for a tower of one narrow layer, where only the decoder matters.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    model_type: ClassVar[str]
    model_class: ClassVar[str]
    preprocessor: ClassVar[type[VideoPreprocessor]]
    published: ClassVar[tuple[PublishedModel, ...]] = ()
    default_frames: ClassVar[int] = 32
    features_key: ClassVar[str] = "video"
    pixels_key: ClassVar[str] = "pixel_values_videos"
    injection_arguments: ClassVar[tuple[str, ...]] = ()
    newlines: ClassVar[int] = 0
    text_between: ClassVar[bool] = False
    replaced_around: ClassVar[int] = 0
    renumbers: ClassVar[bool] = True
    merge_similarity: ClassVar[float]
    merge_queries: ClassVar[int]
    chat_template: ClassVar[str]
    special_tokens: ClassVar[tuple[str, ...]]
    end_token: ClassVar[str] = "<|im_end|>"
    writes_template: ClassVar[bool] = False
    small_tower: ClassVar[Mapping[str, Any]]

    # --- the prompt

    def visual_token_id(self, config: PreTrainedConfig) -> int:
        """Return the id of the placeholders that the vision features replace."""
        return int(config.video_token_id)

    def placeholder_ids(self, config: PreTrainedConfig) -> list[int]:
        """Return every id that stands for pixels; an answer must hold none."""
        return [int(config.video_token_id), int(config.image_token_id)]

    def mark_ids(self, config: PreTrainedConfig) -> list[int]:
        """Return the ids of text that only says where a video starts and ends; none by default."""
        return []

    @abstractmethod
    def frames_per_token(self, config: PreTrainedConfig) -> int:
        """Return the number of sampled frames that one layout frame covers."""

    @abstractmethod
    def shape(self, config: PreTrainedConfig, placeholders: int, grid: Grid | None) -> tuple[int, int, int]:
        """Return (frames, rows, cols) of the visual tokens; `ModelError` when they are not one video."""

    @abstractmethod
    def placeholders(self, config: PreTrainedConfig, frames: int, grid: Grid | None = None) -> int:
        """Return the number of placeholder ids, newlines included, that `frames` sampled frames need."""

    def video_ids(
        self,
        config: PreTrainedConfig,
        encode: Callable[[str], list[int]],
        frames: int,
        grid: Grid | None = None,
        times: Times | None = None,
    ) -> list[int]:
        """Return the ids of `frames` sampled frames in a prompt: placeholders, and the text between frames if any.

        `encode` turns text into ids without special tokens. `times` are the seconds of the frames, where known.
        """
        return [self.visual_token_id(config)] * self.placeholders(config, frames, grid)

    def message_text(self, frames: int, times: Times | None = None) -> tuple[str, str]:
        """Return the text right before and right behind the video in the message; none by default.

        It becomes ids together with its neighbours, unlike what `video_ids` writes.
        """
        return "", ""

    def layout(self, config: PreTrainedConfig, input_ids: Tensor, video_grid_thw: Tensor | None = None) -> VisualLayout:
        """Find the visual tokens of the one video in a prompt.

        Parameters
        ----------
        config : `model.config` of a supported family.
        input_ids : LongTensor [n] or [1, n], with placeholders expanded.
        video_grid_thw : LongTensor [1, 3], patches in time, height and width; not needed by every family.

        Raises
        ------
        ModelError : no video, more than one, placeholders that do not match the grid, or image placeholders.

        The last `newlines` placeholders are text and no part of the layout.
        """
        from sharp_demo.backbones.layout import VisualLayout

        if input_ids.ndim == 2 and input_ids.shape[0] != 1:
            raise ModelError(f"the batch has {input_ids.shape[0]} prompts; one prompt at a time is supported")
        ids = input_ids.reshape(-1)
        visual = self.visual_token_id(config)
        if any(bool((ids == other).any()) for other in self.placeholder_ids(config) if other != visual):
            raise ModelError("the prompt holds image placeholders; only a single video is supported")
        found = (ids == visual).nonzero().reshape(-1)
        if not found.numel():
            raise ModelError("the prompt holds no video")
        grid = None if video_grid_thw is None else video_grid_thw.reshape(-1, 3).tolist()
        index, (frames, rows, cols) = self.place(config, found, grid)
        return VisualLayout(
            index=index,
            frames=frames,
            rows=rows,
            cols=cols,
            frames_per_token=self.frames_per_token(config),
            length=ids.numel(),
        )

    def place(self, config: PreTrainedConfig, found: Tensor, grid: Grid | None) -> tuple[Tensor, tuple[int, int, int]]:
        """Return the ascending prompt rows of the visual tokens, [N], and (frames, rows, cols).

        `found` are the rows of all placeholders: one block, or a block per frame with `text_between`. Raises
        `ModelError` when they are not one video.
        """
        gaps = (found.diff() > 1).nonzero().reshape(-1) + 1  # placeholders before each stretch of text
        if gaps.numel() and not self.text_between:
            raise ModelError("the prompt's video placeholders are interrupted by text; exactly one video is supported")
        frames, rows, cols = self.shape(config, found.numel(), grid)
        visual = found.numel() - self.newlines
        if frames * rows * cols != visual:
            raise ModelError(
                f"the prompt has {visual} video placeholders but the video has {frames} x {rows} x {cols} tokens"
            )
        if bool((gaps % (rows * cols)).any()):
            raise ModelError(f"text interrupts the {rows * cols} video placeholders of a frame")
        return found[:visual], (frames, rows, cols)

    def prompt_inputs(
        self, config: PreTrainedConfig, input_ids: Tensor, grid: Tensor | None, times: Times | None = None
    ) -> dict[str, Tensor]:
        """Return what `forward` needs of a prompt in addition to ids and mask; nothing by default."""
        return {}

    # --- positions

    def positions(
        self, config: PreTrainedConfig, input_ids: Tensor, grid: Tensor | None, times: Times | None = None
    ) -> Tensor | None:
        """Return the position ids of a prompt by the rule of the released weights; None for 0..n-1.

        `times` are the seconds of the sampled frames, for families whose time axis counts seconds.
        """
        return None

    def grid_of_positions(self, config: PreTrainedConfig, input_ids: Tensor, position_ids: Tensor) -> Tensor | None:
        """Read `video_grid_thw` [1, 3] back from positions [3 or 4, 1, n]; None where there is no grid."""
        return None

    def rotary_positions(self, position_ids: Tensor) -> Tensor:
        """Return position ids [B, n] or [3 or 4, B, n] as the decoder's `rotary_emb` wants them."""
        return position_ids

    # --- the decoder

    def injections(self, arguments: Mapping[str, Any]) -> Sequence[Tensor]:
        """Return what this prompt adds to the visual rows behind the first decoder layers, [N, d] for each; or none.

        `arguments` are the keyword arguments of the decoder, see `injection_arguments`.
        """
        return ()

    def text_model(self, model: PreTrainedModel) -> nn.Module:
        """Return the decoder: a module with `layers`, `norm`, `rotary_emb` and `embed_tokens`."""
        return model.model.language_model

    # --- vision

    def by_frame(self, pixels: Mapping[str, Tensor]) -> Tensor:
        """Return the pixels of each layout frame, [F, ...]: of [1, F, ...], or of patches with a grid."""
        values, grid = pixels[self.pixels_key], pixels.get("video_grid_thw")
        return values[0] if grid is None else values.view(int(grid[0, 0]), -1, values.shape[-1])

    def of_frames(self, pixels: Mapping[str, Tensor], frames: Tensor) -> dict[str, Tensor]:
        """Return `pixels` with those of other layout frames, as `by_frame` gives them, in their place."""
        if (grid := pixels.get("video_grid_thw")) is None:
            return {**pixels, self.pixels_key: frames[None]}
        size = torch.tensor([[len(frames), *grid[0, 1:].tolist()]])
        return {**pixels, self.pixels_key: frames.flatten(0, 1), "video_grid_thw": size}

    @abstractmethod
    def encode(self, model: PreTrainedModel, pixels: Mapping[str, Tensor], chunk_frames: int) -> Encoded:
        """Run the vision tower and the projector, over `chunk_frames` sampled frames at a time."""

    def encoder_output(self, encoded: Encoded) -> dict[str, Any]:
        """Return the fields of the encoder's output in which the model looks for the features of one video."""
        return {"pooler_output": (encoded.features,)}

    @abstractmethod
    def tower(self, model: PreTrainedModel) -> nn.Module:
        """Return the vision tower."""

    def tower_layers(self, model: PreTrainedModel) -> Sequence[TowerLayer]:
        """Return the tower's layers up to the one whose output feeds the projector, for patches to merge between them.

        Raises UnsupportedError where patches cannot merge and be put back; so by default.
        """
        raise UnsupportedError(f"patches cannot merge inside the vision tower of {self.title}")

    @abstractmethod
    def tower_shape(self, config: Mapping[str, Any], tokens: int) -> TowerShape:
        """Return what decides the tower's cost for a layout frame of `tokens` visual tokens.

        `config` is that of a checkpoint as a dict, or the config.json of a published one.
        """

    def signals_refusal(self, config: PreTrainedConfig) -> str | None:
        """Return why this checkpoint's tower cannot be read, or None."""
        return None

    @abstractmethod
    def signal_source(self, model: PreTrainedModel) -> tuple[nn.Module, SignalReader]:
        """Return the attention module that feeds the projector, and how to read it; see `in_layout_order`."""

    def in_layout_order(self, model: PreTrainedModel, arguments: Mapping[str, Any], rows: Tensor) -> Tensor:
        """Return what `signal_source` reads of all tokens in a pass, [n, ...], in the order of the layout.

        `arguments` are the tower's keyword arguments. Towers that keep that order need nothing here.
        """
        return rows

    # --- small checkpoints

    def preprocessor_values(self, config: PreTrainedConfig) -> dict[str, Any]:
        """Return what a preprocessor file must say for a checkpoint of this config; the rest are class defaults."""
        return {}

    @abstractmethod
    def tiny_config(self, shape: TinyShape, ids: Mapping[str, int], vocab_size: int) -> dict[str, Any]:
        """Return config.json of a small checkpoint."""

    @abstractmethod
    def tiny_preprocessor(self, shape: TinyShape) -> dict[str, Any]:
        """Return preprocessor_config.json of a small checkpoint."""

    @abstractmethod
    def tiny_processor(self, shape: TinyShape) -> dict[str, Any]:
        """Return processor_config.json of a small checkpoint."""


class TrainableFamily(Family):
    """A family that the laboratory trains small models of, the vision tower apart from the rest."""

    @abstractmethod
    def token_former(self, model: PreTrainedModel) -> nn.Module:
        """Return the part that turns patch features into visual tokens: projector or merger."""

    @abstractmethod
    def tower_parameters(self, model: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
        """Return the tower's named parameters without the part that forms the tokens."""

    @abstractmethod
    def patch_features(self, model: PreTrainedModel, pixels: Mapping[str, Tensor]) -> Tensor:
        """Return the patches of every visual token before it is formed, [N, 4, d]."""

    @abstractmethod
    def form_tokens(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """Turn patch features [N, 4, d] into visual tokens [N, width], as the model does."""


def tiny_text_config(shape: TinyShape, vocab_size: int, ids: Mapping[str, int]) -> dict[str, Any]:
    """Return the decoder part of a small config.json."""
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
