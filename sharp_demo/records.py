"""Plain-data records between the engine and everything that shows its results.

No torch and no model objects: every record pickles, and `Result.to_dict` is the JSON of
`compare --json` and of the API. UI, command line, API and any remote worker speak only this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

Match = Literal["tokens", "flops", "ttft"]


@dataclass(frozen=True)
class MethodSpec:
    """One column of a comparison: a registered method, its options, and the label it is shown under.

    `retention` in place of the request's, so that one run can hold a method at several; None: the request's.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    retention: float | None = None

    @property
    def title(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class Request:
    """What a person asked for.

    `retention` is the share of visual tokens asked for, in (0, 1]. With `match="flops"` every method gets
    the retention that costs what FastV (K=2) costs at `retention`, with "ttft" that whose first token does, the vision
    tower included. `frames=None` means the model's default.
    `timing_s`: seconds of timing rounds after the answers; None: the deployment's, 0: none.
    """

    video: str
    question: str
    methods: tuple[MethodSpec, ...]
    retention: float = 0.2
    match: Match = "tokens"
    model: str | None = None
    frames: int | None = None
    max_new_tokens: int = 64
    seed: int = 0
    timing_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers. `trained=False` means random weights: say so next to every answer."""

    name: str
    family: str  # its name
    trained: bool
    note: str  # its limits in one sentence, shown where the answer stands; empty for real checkpoints
    device: str
    device_reason: str
    dtype: str
    attention_backend: str
    attention_reason: str
    parameters: int
    revision: str = ""


@dataclass(frozen=True)
class Layout:
    """Where the visual tokens sit. Token t of frame f is row t // cols, column t % cols.

    `timestamps[f]` is the time in seconds of layout frame f. One layout frame covers `frames_per_token`
    sampled frames (2 where the vision tower merges pairs of frames, else 1).
    """

    frames: int
    rows: int
    cols: int
    frames_per_token: int
    timestamps: tuple[float, ...]

    @property
    def tokens(self) -> int:
        return self.frames * self.rows * self.cols


@dataclass(frozen=True)
class Stage:
    """One measured stage. `shared` stages ran once for all methods; `part_of` names the figure that contains it.

    "once": in no figure, because a warm cache saves it.
    """

    ms: float
    shared: bool
    part_of: str | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one method, as if it had run alone: shared stages are included in its sums.

    Attributes
    ----------
    decode_video, vision : reading the video and seeing it (vision tower), each measured once for all methods.
    bias_setup : what a method paid once in this run and a warm cache saves; in none of the other figures.
    before_prefill : all that comes before the prefill: what the first token would take if the prefill took nothing.
    prefill : the language model's, with everything the method adds to it: the (lower) median of `rounds`, or the
        answer's own prefill where there were none.
    first_token : `before_prefill` + `prefill`. total : the same with `decode`.
    decode_per_token : None where the answer took no decoding step.
    rounds : the prefill of every timing round; round i of all methods of a run belongs together.
    cpu_rounds : the same in processor time; empty where the model does not run on a CPU.
    """

    decode_video: float
    vision: float
    bias_setup: float
    before_prefill: float
    prefill: float
    first_token: float
    decode: float
    decode_per_token: float | None
    total: float
    stages: dict[str, Stage]
    rounds: list[float] = field(default_factory=list)
    cpu_rounds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ratio:
    """How many times less something took than a reference, from rounds that measured both.

    `value` is the median of the ratios within a round; None where it is `refused`, because the rounds disagree too
    much or are too few. `low` and `high` are the least and the largest ratio of one round.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Speedup:
    """What a method gained over vanilla in the same run: vanilla's time over its own.

    `prefill_cpu` is in processor time, None where the model does not run on a CPU. `ceiling`: what the ratio
    `first_token` would be if the method's prefill took nothing.
    """

    prefill: Ratio
    prefill_cpu: Ratio | None
    first_token: Ratio
    ceiling: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Speedup:
        """Return the speed-up that `asdict`, or JSON made of it, describes."""
        cpu = values["prefill_cpu"]
        return cls(
            prefill=Ratio(**values["prefill"]),
            prefill_cpu=None if cpu is None else Ratio(**cpu),
            first_token=Ratio(**values["first_token"]),
            ceiling=values["ceiling"],
        )


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of the prompt, of its video, and those kept after the last prune.

    `retention` is kept / visual; `layer_mean` the mean share of the visual tokens over the decoder layers.
    """

    prompt: int
    visual: int
    kept: int
    retention: float
    layer_mean: float


@dataclass(frozen=True)
class Tflops:
    """TFLOPs of one prefill in both conventions of `sharp_demo.cost`; `setup`, paid once and cached, is in neither.

    `tower_paper`, `tower_exact`: those of the vision tower over the frames that it encoded; None where not counted.
    """

    paper: float
    exact: float
    setup: float = 0.0
    tower_paper: float | None = None
    tower_exact: float | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes of all cached keys and values, and the device's peak during a prefill.

    `peak_bytes` contains the weights; `added_bytes` is what the prefill added to what was there before it. Both are
    None where no allocator counts them: not on CUDA.
    """

    kv_bytes: int
    peak_bytes: int | None
    added_bytes: int | None = None


@dataclass
class Result:
    """What one method did, as achieved and not as asked.

    Slots number the visual tokens of `layout` 0..N-1 in sequence order, N = frames * rows * cols.

    Attributes
    ----------
    method, label, config : registered name, column title, and every hyperparameter that was in force.
    status : "done", or "stopped" when the run was cancelled while this method was answering.
    visual_per_layer : visual tokens that entered each decoder layer.
    left_before : for every slot the first decoder layer that it did not enter; the number of layers if it stayed.
    kv_per_layer : visual tokens whose keys and values each layer's cache holds after the prefill; fewer than entered
        where a method forgot them (SharpV's memory stage).
    kept : per layout frame, the row-major indices (0..rows*cols-1) of its kept tokens, ascending.
    role : per layout frame, parallel to `kept`: "kept", "register", "filled", "merged", "grid" ...
    merged_into : [from_slot, to_slot] pairs of the tokens that were averaged into another one.
    scores : {"raw", "bias", "debiased"} -> one float per slot (None: gone before it was scored); only those computed.
    segments : [first_frame, end_frame) pairs in layout frames; empty when the method does not segment.
    encoded_frames : layout frames that the vision tower encoded; the others equal one of them bit for bit. None in
        files from before they were counted.
    own_vision : the vision pass is this method's own: it had the video shown in its own way. `layout` is then that of
        what it saw, and `tokens.visual` still counts the whole video.
    speedup : over vanilla of the same run; None for vanilla itself, without it, and where they were not timed together.
    trace : what each step did, when the method was asked to tell (ShaRP's option `trace`): cosines of neighbouring
        frames' means, and the slots of registers, prefiltered, absorbed [register, pivot], filled, repaired.
    """

    method: str
    label: str
    config: dict[str, Any]
    status: str
    answer: str
    answer_tokens: int
    first_token_prob: float | None
    tokens: TokenCounts
    visual_per_layer: list[int]
    left_before: list[int]
    kv_per_layer: list[int]
    layout: Layout
    kept: list[list[int]]
    role: list[list[str]]
    merged_into: list[list[int]]
    scores: dict[str, list[float | None]]
    segments: list[list[int]]
    latency_ms: Latency
    tflops: Tflops
    memory: Memory
    device: str
    dtype: str
    attention_backend: str
    seed: int
    versions: dict[str, str]
    model: str = ""
    notes: list[str] = field(default_factory=list)
    encoded_frames: int | None = None
    own_vision: bool = False
    speedup: Speedup | None = None
    trace: dict[str, list[Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready built-in types; the field names are the public contract."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Result:
        """Return the result that `to_dict`, or JSON made of it, describes."""
        layout, latency, speedup = values["layout"], values["latency_ms"], values["speedup"]
        stages = {name: Stage(**stage) for name, stage in latency["stages"].items()}
        records = {
            "layout": Layout(**{**layout, "timestamps": tuple(layout["timestamps"])}),
            "tokens": TokenCounts(**values["tokens"]),
            "latency_ms": Latency(**{**latency, "stages": stages}),
            "tflops": Tflops(**values["tflops"]),
            "memory": Memory(**values["memory"]),
            "speedup": None if speedup is None else Speedup.from_dict(speedup),
        }
        return cls(**{**values, **records})


@dataclass(frozen=True)
class Started:
    request: Request
    model: ModelInfo
    labels: tuple[str, ...]  # one per method, unique, in running order


@dataclass(frozen=True)
class Progress:
    """A long stage has begun (or goes on): loading the model, decoding, encoding."""

    stage: str
    message: str


@dataclass(frozen=True)
class Decoded:
    frames: np.ndarray  # uint8 [T, H, W, 3], as sampled, for display
    timestamps: tuple[float, ...]  # seconds, one per sampled frame
    info: dict[str, Any]  # container, codec, width, height, duration, fps, rotation, decoder
    ms: float


@dataclass(frozen=True)
class Encoded:
    """What the vision tower made of the video; `frames` of the layout frames were encoded, the others equal one."""

    layout: Layout
    tokens: int
    ms: float
    cached: bool
    frames: int


@dataclass(frozen=True)
class MethodStarted:
    label: str
    method: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Text:
    label: str
    text: str  # the whole answer so far


@dataclass(frozen=True)
class MethodDone:
    """An answer stands. Its result is not timed yet: `Done` has the results with the times of the rounds."""

    label: str
    result: Result


@dataclass(frozen=True)
class MethodFailed:
    label: str
    kind: str
    message: str


@dataclass(frozen=True)
class Timing:
    """All answers stand; round `round` (from 0) of at most `budget_s` seconds of timing goes on."""

    round: int
    budget_s: float


@dataclass(frozen=True)
class Done:
    results: tuple[Result, ...]
    failed: tuple[MethodFailed, ...]


Event = Started | Progress | Decoded | Encoded | MethodStarted | Text | MethodDone | MethodFailed | Timing | Done


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of the last prompt token over the video, by decoder layer and layout frame.

    `raw`, `bias`, `debiased` are [layers][frames]: attention probability (mean over heads) summed over the
    frame's tokens; bias is the same on a black video, debiased = raw - lambda * bias (ShaRP Eq. 5).
    """

    layout: Layout
    penalty: float  # lambda of Eq. 5
    raw: list[list[float]]
    bias: list[list[float]]
    debiased: list[list[float]]
    segments: list[list[int]]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
