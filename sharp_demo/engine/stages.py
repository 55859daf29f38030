"""What all methods of a run share: the decoded frames and their features, each computed once and cached."""

from __future__ import annotations

import logging
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from sharp_demo import strings
from sharp_demo.backbones.families import family_of, visual_layout
from sharp_demo.backbones.features import VideoFeatures, encode_video
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.preprocessing import VideoPreprocessor
from sharp_demo.backbones.signals import signals_refusal
from sharp_demo.backbones.view import WHOLE, View
from sharp_demo.cost import ModelShape
from sharp_demo.engine.condition import NO_MEMORY
from sharp_demo.engine.faults import free_memory, is_out_of_memory
from sharp_demo.errors import DeviceMemoryError
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.recent import Recent
from sharp_demo.records import Decoded, Encoded, Event, Layout, Progress, Request
from sharp_demo.settings import Settings
from sharp_demo.stopwatch import Stopwatch
from sharp_demo.video import Clip, Reader
from sharp_demo.video.digest import file_digest

log = logging.getLogger(__name__)


@dataclass
class Loaded:
    """A loaded model and what belongs to it alone; `features` are those of recent videos, with their milliseconds.

    `views` are those of methods that have a video shown in their own way.
    """

    backbone: Backbone
    shape: ModelShape
    bias_cache: BiasCache = field(default_factory=BiasCache)
    features: Recent[tuple[VideoFeatures, float]] = field(default_factory=lambda: Recent(2))
    views: Recent[tuple[VideoFeatures, float]] = field(default_factory=lambda: Recent(4))

    @classmethod
    def of(cls, backbone: Backbone) -> Loaded:
        return cls(backbone, ModelShape.from_config(backbone.model.config.text_config))


@dataclass(frozen=True)
class Shared:
    """What all methods of one run share, or what one has for itself by its own `view`.

    The model sees every `stride`-th decoded frame: 1, or 2 and 4 where memory ran out. `whole`: visual tokens of the
    video as it is, without the view.
    """

    clip: Clip
    features: VideoFeatures
    prompt: dict[str, Tensor]
    layout: Layout
    vision_ms: float
    stride: int
    whole: int
    view: View = WHOLE


class Stages:
    """Decodes and encodes videos; the last two are kept, by the file's content and the number of frames."""

    def __init__(self, settings: Settings, reader: Reader) -> None:
        self.settings, self.reader = settings, reader
        self.clips: Recent[Clip] = Recent(2)

    def decode(self, request: Request, loaded: Loaded, stride: int = 1) -> Clip:
        """Return every `stride`-th of the frames that the request asks for; VideoError for an unusable file."""
        key = self._key(request, loaded)
        clip = self.clips.get(key)
        if clip is None:
            clip = self.reader.decode(request.video, self._frames(request, loaded))
            self.clips.put(key, clip)
        return _thinned(clip, stride)

    def keep(self, request: Request, loaded: Loaded, clip: Clip) -> None:
        """Take the frames that another process decoded for this request."""
        self.clips.put(self._key(request, loaded), clip)

    def encode(self, request: Request, loaded: Loaded, *, signals: bool) -> Generator[Event, None, Shared]:
        """Encode the frames; when they do not fit, every second of them. Return what the methods share."""
        for stride in (1, 2):
            if stride > 1:
                clip = self.decode(request, loaded, stride)
                yield Decoded(clip.frames, clip.timestamps, vars(clip.info), clip.ms)
            yield Progress("vision", strings.ENCODING)
            cached = loaded.features.get((*self._key(request, loaded), stride)) is not None
            try:
                shared = self.share(request, loaded, signals=signals, stride=stride)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("the vision tower ran out of memory: %s", str(error))
            else:
                yield Encoded(shared.layout, shared.layout.tokens, shared.vision_ms, cached, shared.features.encoded)
                return shared
            free_memory()
        raise DeviceMemoryError(NO_MEMORY)

    def share(
        self, request: Request, loaded: Loaded, *, signals: bool = False, stride: int = 1, view: View = WHOLE
    ) -> Shared:
        """Decode and encode, or find what was.

        `signals`: a method asks for the tower's attention. The time that reading it takes is not in `vision_ms`.
        """
        backbone, model = loaded.backbone, loaded.backbone.model
        clip, video = self.decode(request, loaded, stride), backbone.processor.video
        whole = self._prompt(request, loaded, clip, video)
        tokens = len(layout_of(backbone, whole))
        if view != WHOLE:
            step = family_of(model.config).frames_per_token(model.config)
            clip = _only(clip, view.sampled(len(clip.frames), step))
            video = video if view.cells is None else video.sized(*view.cells)
        prompt = whole if view == WHOLE else self._prompt(request, loaded, clip, video)
        recent, key = (loaded.features if view == WHOLE else loaded.views), self._key(request, loaded)
        key = (*key, stride) if view == WHOLE else (*key, stride, view)
        entry = recent.get(key)
        signals = signals and signals_refusal(model) is None
        if entry is None or (signals and entry[0].signals is None):
            watch = Stopwatch(model.device)
            with watch("vision"):
                features = encode_video(model, video.pixels(clip.frames), signals=signals, merging=view.merging)
            reading_ms = features.signals.ms if features.signals is not None else 0.0
            entry = (features, watch.ms()["vision"] - reading_ms)
            recent.put(key, entry)
        features, vision_ms = entry
        layout = layout_of(backbone, prompt).record(clip.timestamps)
        return Shared(clip, features, prompt, layout, vision_ms, stride, tokens, view)

    def _prompt(self, request: Request, loaded: Loaded, clip: Clip, video: VideoPreprocessor) -> dict[str, Tensor]:
        grid = video.grid(*clip.frames.shape[:3])
        frames, times = len(clip.frames), clip.timestamps
        return loaded.backbone.processor.prompt(request.question, frames=frames, grid=grid, times=times)

    def _frames(self, request: Request, loaded: Loaded) -> int:
        return request.frames or min(loaded.backbone.default_frames, self.settings.max_frames)

    def _key(self, request: Request, loaded: Loaded) -> tuple[Hashable, ...]:
        return file_digest(request.video), self._frames(request, loaded)


def layout_of(backbone: Backbone, prompt: dict[str, Tensor]) -> VisualLayout:
    """Return where a prompt's visual tokens sit."""
    return visual_layout(backbone.model.config, prompt["input_ids"], prompt.get("video_grid_thw"))


def _thinned(clip: Clip, stride: int) -> Clip:
    if stride == 1:
        return clip
    return _only(clip, range(0, len(clip.frames), stride))


def _only(clip: Clip, frames: Sequence[int]) -> Clip:
    """Return a clip of these frames."""
    times = tuple(clip.timestamps[frame] for frame in frames)
    return replace(clip, frames=clip.frames[list(frames)], timestamps=times)
