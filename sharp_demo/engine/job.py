"""One method of a run, and what it needs to answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from sharp_demo.backbones.families import family_of
from sharp_demo.backbones.signals import signals_refusal
from sharp_demo.backbones.view import WHOLE, VideoShape
from sharp_demo.engine.condition import Condition
from sharp_demo.engine.generation import Stop
from sharp_demo.engine.stages import Loaded, Shared, Stages, layout_of
from sharp_demo.errors import UnsupportedError
from sharp_demo.pruning.matching import Prompted, match_flops, match_ttft
from sharp_demo.pruning.method import Method
from sharp_demo.records import Request


@dataclass(frozen=True)
class Job:
    """One method of a run, and what it needs to answer.

    `shared` is what all methods share, or once it is `fitted` what a method with a view of its own has for itself.
    """

    request: Request
    loaded: Loaded
    stages: Stages
    condition: Condition
    stop: Stop
    shared: Shared
    label: str
    method: Method

    def with_stride(self, stride: int) -> Job:
        """Return the same job on every `stride`-th frame."""
        if stride == self.shared.stride:
            return self
        shared = self.stages.share(self.request, self.loaded, signals=reads_tower(self.method), stride=stride)
        return replace(self, shared=shared)

    def fitted(self) -> Job:
        """Return the job with the method as this model and budget ask for it; InputError where it cannot be."""
        layers = self.loaded.shape.layers
        method = _matched(self).fitted(layers)
        method.check(layers)
        view = method.view(video_shape(self.loaded, self.shared))
        shared = self.shared
        if view != WHOLE:
            shared = self.stages.share(self.request, self.loaded, stride=shared.stride, view=view)
        if reads_tower(self.method) and (refusal := signals_refusal(self.loaded.backbone.model)):
            raise UnsupportedError(refusal)
        return replace(self, method=method, shared=shared)

    @property
    def attached(self) -> Method:
        """What the method has to do in its prompt: nothing, where having the video shown in its own way was all."""
        return self.method.behind(self.shared.view)


def reads_tower(method: Method) -> bool:
    """Return whether a method chooses by the vision tower's attention."""
    return method.needs_vision and method.active


def video_shape(loaded: Loaded, shared: Shared) -> VideoShape:
    """Return the layout of the shared video, as methods are asked for their view of it."""
    layout = shared.layout
    return VideoShape(layout.frames, layout.rows, layout.cols, loaded.backbone.processor.video.resizable)


def prompted(loaded: Loaded, shared: Shared) -> Prompted:
    """Return what the cost of a first token is counted from."""
    config, layout, length = loaded.backbone.model.config, shared.layout, shared.prompt["input_ids"].shape[1]
    return Prompted(
        shape=loaded.shape,
        tower=partial(family_of(config).tower_shape, config.to_dict()),
        video=video_shape(loaded, shared),
        encoded=shared.features.encoded,
        text=length - layout.tokens,
        prefix=int(layout_of(loaded.backbone, shared.prompt).index[0]),
    )


def _matched(job: Job) -> Method:
    """Return the method at the retention that costs what the request's budget costs."""
    layout = job.shared.layout
    match job.request.match:
        case "tokens":
            return job.method
        case "flops":
            return match_flops(job.method, job.loaded.shape, layout.tokens, layout.frames)
        case "ttft":
            return match_ttft(job.method, prompted(job.loaded, job.shared))
