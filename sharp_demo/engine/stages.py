"""What all methods of a run share: the decoded frames and their features, each computed once and cached."""

from __future__ import annotations

import logging
from collections.abc import Generator, Hashable
from dataclasses import dataclass, field, replace

from torch import Tensor

from sharp_demo import strings
from sharp_demo.backbones.families import visual_layout
from sharp_demo.backbones.features import VideoFeatures, encode_video
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.backbones.load import Backbone
from sharp_demo.backbones.signals import signals_refusal
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
    """A loaded model and what belongs to it alone; `features` are those of recent videos, with their milliseconds."""

    backbone: Backbone
    shape: ModelShape
    bias_cache: BiasCache = field(default_factory=BiasCache)
    features: Recent[tuple[VideoFeatures, float]] = field(default_factory=lambda: Recent(2))

    @classmethod
    def of(cls, backbone: Backbone) -> Loaded:
        return cls(backbone, ModelShape.from_config(backbone.model.config.text_config))


@dataclass(frozen=True)
class Shared:
    """What all methods of one run share.

    The model sees every `stride`-th decoded frame: 1, or 2 and 4 where memory ran out.
    """

    clip: Clip
    features: VideoFeatures
    prompt: dict[str, Tensor]
    layout: Layout
    vision_ms: float
    stride: int


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

    def share(self, request: Request, loaded: Loaded, *, signals: bool = False, stride: int = 1) -> Shared:
        """Decode and encode, or find what was.

        `signals`: a method asks for the tower's attention. The time that reading it takes is not in `vision_ms`.
        """
        backbone, model = loaded.backbone, loaded.backbone.model
        clip = self.decode(request, loaded, stride)
        grid = backbone.processor.video.grid(*clip.frames.shape[:3])
        prompt = backbone.processor.prompt(request.question, frames=len(clip.frames), grid=grid, times=clip.timestamps)
        key = (*self._key(request, loaded), stride)
        entry = loaded.features.get(key)
        signals = signals and signals_refusal(model) is None
        if entry is None or (signals and entry[0].signals is None):
            watch = Stopwatch(model.device)
            with watch("vision"):
                features = encode_video(model, backbone.processor.video.pixels(clip.frames), signals=signals)
            reading_ms = features.signals.ms if features.signals is not None else 0.0
            entry = (features, watch.ms()["vision"] - reading_ms)
            loaded.features.put(key, entry)
        features, vision_ms = entry
        layout = layout_of(backbone, prompt).record(clip.timestamps)
        return Shared(clip, features, prompt, layout, vision_ms, stride)

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
    return replace(clip, frames=clip.frames[::stride], timestamps=clip.timestamps[::stride])
