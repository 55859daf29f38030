"""`bench prefill`: vanilla and every method, interleaved in one run on the same prompt.

Rounds and ratios are the engine's (`sharp_demo.engine.timing`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lab.provenance import commit, machine
from lab.speed.content import Content
from lab.speed.memory import added_on_cpu, peak_memory
from lab.speed.subject import FRAME_SIZE, Prompt, Subject, make_prompt
from lab.speed.timing import MIN_ROUNDS, summary
from lab.tables.names import PLAIN
from sharp_demo.backbones.features import encode_video
from sharp_demo.backbones.load import choose_attention
from sharp_demo.backbones.signals import signals_refusal
from sharp_demo.cost import exact_tflops
from sharp_demo.engine.figures import prefill_tflops, versions
from sharp_demo.engine.generation import cache_bytes, decode_step, prefill
from sharp_demo.engine.timing import paired_ratio, timing_rounds
from sharp_demo.errors import InputError
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Role, Run
from sharp_demo.pruning.registry import make_method, method_class
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.records import Ratio
from sharp_demo.stopwatch import Stopwatch

COLD = "bias_setup"  # the one stage that a warm bias cache saves

# The columns of the ShaRP paper's Table 4 and the stages each holds; gathering has no column there.
TABLE_4 = {
    "attn": ("mask", "scores", "bias", "select"),
    "fltr": ("pre-filter",),
    "dedpl": ("dedup",),
    "fil": ("fill",),
    "gather": ("gather",),
}
_IN_TABLE_4 = {stage for names in TABLE_4.values() for stage in names}
CONTAINS = {
    "prefill": "language model only, from embeddings to the first token's id; bias warm; video features are given",
    "CPU time": "processor time of the same prefills, one thread: what others on the machine take is not in it",
    "attn": "segment cuts, last-token scores, black-video bias of the question's rows (warm), top-K",
    "fltr": "RegD step 1 with the copy of the visual rows it works on",
    "dedpl": "RegD step 2",
    "fil": "RegD step 3 and the repair of the budget",
    "gather": "taking the surviving rows, positions and rotations",
    "other": "what methods outside that table do beside: merging, cutting into segments, trimming the cache",
    "forward": "prefill without the stages: decoder layers, segment-masked attention, final norm, one row of logits",
    "vision_scores": "attention and keys of one layer of the vision tower, computed a second time for the methods that "
    "choose by them; not in LLM Fw., Total or the share beside it",
    "bias_cold": "what the first prompt with this layout pays on top: one black frame through the vision tower (a "
    "stand-in of one layer where a configuration's tower is not timed), then the black video through the layers before",
    "decode": "one further token, greedy, on the pruned cache; median",
    "peak": "CUDA: allocator's peak within prefill and decode, weights included; unknown on a CPU",
    "added": "activations and keys and values at their highest, above what was there before: CUDA by the allocator, "
    "within prefill and decode; CPU by counting every tensor of one more prefill, which is not timed",
    "first token": "frames to the first token's id, vision tower included, one tower pass in every round; decoding a "
    "file is not in it. Ceiling: the ratio if the method's prefill took no time",
    "flops ratio": "exact arithmetic on token counts: grouped heads, SwiGLU, causal attention, text, one row of logits",
    "executed ratio": "the same with what the method really runs: segment mask in layer 0, scores, warm bias",
}


@dataclass(frozen=True)
class Case:
    """One thing to measure: a method at a retention on one content with one attention backend."""

    method: str
    retention: float
    content: Content
    attention: str

    def make(self, layers: int) -> Method | None:
        """The method on a model of so many decoder layers; None for the plain model."""
        return None if self.method == PLAIN else make_method(self.method, self.retention).fitted(layers)


@dataclass(frozen=True)
class PrefillPlan:
    """What to measure. Raises InputError (MethodError for a method) for values out of range.

    `vision`: how often to time the vision tower; 0 leaves it out. `ttft`: time it once in every round in place of
    that, and give the time to the first token, its ratio to vanilla's and the ratio's ceiling. `attentions`: backends
    to run side by side;
    empty, or "auto", for the one chosen by device and dtype. `plain`: measure the model with nothing attached, too.
    """

    methods: tuple[str, ...] = ("vanilla", "fastv", "feather", "sharp")
    retentions: tuple[float, ...] = (0.235, 0.14)
    contents: tuple[Content, ...] = (Content(),)
    attentions: tuple[str, ...] = ()
    tokens: int | None = None
    text_tokens: int = 40
    rounds: int = 5
    decode_tokens: int = 4
    vision: int = 0
    seed: int = 0
    plain: bool = True
    ttft: bool = False

    @property
    def tower(self) -> bool:
        """Whether the vision tower is run, and so must be built."""
        return self.ttft or self.vision > 0

    def __post_init__(self) -> None:
        for what, value, low in (
            ("rounds", self.rounds, 1), ("decode tokens", self.decode_tokens, 0), ("vision", self.vision, 0)
        ):  # fmt: skip
            if value < low:
                raise InputError(f"{what} is {value}; it must be at least {low}")
        for what, values in (("methods", self.methods), ("retentions", self.retentions), ("contents", self.contents)):
            if not values or len(set(values)) < len(values):
                raise InputError(f"{what}: name at least one, and none twice")
        for name in self.methods:
            method_class(name)
        for retention in self.retentions:
            if not 0 < retention < 1:
                raise InputError(f"the retention is {retention:g}; to be measured it must be above 0 and below 1")

    def cases(self, backends: Sequence[str]) -> list[Case]:
        """Plain and vanilla once per backend, every other method on every content at every retention."""
        pruned = [name for name in self.methods if name != "vanilla"]
        whole = (PLAIN, "vanilla") if self.plain else ("vanilla",)
        return [
            case
            for attention in backends
            for case in (
                *(Case(name, 1.0, self.contents[0], attention) for name in whole),
                *(
                    Case(name, retention, content, attention)
                    for content in self.contents
                    for name in pruned
                    for retention in self.retentions
                ),
            )
        ]


@dataclass
class Sample:
    """One measured prefill and the decoding after it; milliseconds and bytes."""

    prefill_ms: float
    stages: dict[str, float]
    decode_ms: list[float]
    kv_bytes: int
    peak_bytes: int | None
    added_bytes: int | None
    cpu_ms: float | None = None  # processor time of the prefill, where one thread does all of it
    run: Run | None = field(default=None, repr=False)

    @property
    def warm_ms(self) -> float:
        return self.prefill_ms - self.stages.get(COLD, 0.0)

    @property
    def beside_ms(self) -> float:
        """Everything that is not the forward pass, bias warm."""
        return sum(ms for stage, ms in self.stages.items() if stage != COLD)


Measure = Callable[[Case], Sample]
Progress = Callable[[str], None]


def interleaved(
    cases: Sequence[Case],
    rounds: int,
    measure: Measure,
    progress: Progress,
    each_round: Callable[[], None] = lambda: None,
) -> dict[Case, list[Sample]]:
    """Measure every case once per round; sample i of every case is from round i. `each_round` opens every round."""
    samples: dict[Case, list[Sample]] = {case: [] for case in cases}
    opened = -1
    for number, case in timing_rounds(cases, most=rounds):
        if number > opened:
            opened = number
            each_round()
        progress(f"round {number + 1} of {rounds}: {case.method} {case.retention:g}")
        samples[case].append(measure(case))
    return samples


class Bench:
    """Runs cases on one model. `bias_cache` stays warm from the warm-up on."""

    def __init__(self, subject: Subject, plan: PrefillPlan) -> None:
        self.subject, self.plan = subject, plan
        self.frames = subject.frames(plan.tokens)
        self.prompts = {
            content: make_prompt(subject, self.frames, content, plan.text_tokens, plan.seed)
            for content in plan.contents
        }
        self.bias_cache = BiasCache()

    @torch.inference_mode()
    def measure(self, case: Case, bias_cache: BiasCache | None = None) -> Sample:
        """One prefill and a few decoded tokens."""
        model, prompt = self.subject.model, self.prompts[case.content]
        method = case.make(self.subject.shape.layers)
        self._use(case.attention)
        cache_of_bias = self.bias_cache if bias_cache is None else bias_cache
        context = nullcontext(None) if method is None else method(model, self.subject.processor, cache_of_bias)
        with peak_memory(model.device) as peak, context as run:
            watch, cpu_began = Stopwatch(model.device), time.process_time()
            with watch("prefill"):
                logits, cache, positions = prefill(model, prompt.inputs)
                token = int(logits.argmax())
            alone = model.device.type == "cpu" and torch.get_num_threads() == 1
            cpu_ms = (time.process_time() - cpu_began) * 1e3 if alone else None
            size = cache_bytes(cache)
            decode_ms = []
            for _ in range(self.plan.decode_tokens):
                positions, step = positions + 1, Stopwatch(model.device)
                with step("decode"):
                    token = int(decode_step(model, token, cache, positions).argmax())
                decode_ms.append(step.ms()["decode"])
        stages = {} if run is None else dict(run.stages)
        return Sample(watch.ms()["prefill"], stages, decode_ms, size, peak.bytes, peak.added, cpu_ms, run)

    @torch.inference_mode()
    def profile(self, case: Case, rows: int, decoding: bool = False) -> str:
        """Table of a case's operators, those first that take most time themselves: of a prefill, or of the tokens."""
        from torch.profiler import ProfilerActivity, profile

        model, method = self.subject.model, case.make(self.subject.shape.layers)
        self._use(case.attention)
        cuda = model.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        watched = profile(activities=activities)
        with nullcontext() if method is None else method(model, self.subject.processor, self.bias_cache):
            with nullcontext() if decoding else watched:
                logits, cache, positions = prefill(model, self.prompts[case.content].inputs)
                token = int(logits.argmax())
            if decoding:
                with watched:
                    for step in range(1, self.plan.decode_tokens + 1):
                        token = int(decode_step(model, token, cache, positions + step).argmax())
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        return watched.key_averages().table(sort_by=order, row_limit=rows)

    def warm_up(self, cases: Iterable[Case], progress: Progress) -> dict[Case, Sample]:
        """Run cases once, unmeasured but for the cold bias: each has a bias cache of its own, and fills the shared one.

        Unpruned cases as well, on every device: the first prefill at full length pays for pages that no later one asks
        for, and the plain model opens the first round.
        """
        seen = {}
        for case in cases:
            progress(f"warm-up: {case.method} {case.retention:g}")
            fresh = BiasCache()
            seen[case] = self.measure(case, fresh)
            for key, rows in fresh.items():
                self.bias_cache.put(key, rows)
        return seen

    def warm_tower(self) -> Tower | None:
        """The vision tower, run once on one frame; None where the plan does not run it."""
        if not self.plan.tower:
            return None
        if self.subject.stand_in_tower:
            raise InputError("the vision tower was not built: it cannot be timed")
        methods = (method_class(name) for name in self.plan.methods)
        read = any(method.needs_vision for method in methods) and signals_refusal(self.subject.model) is None
        step = self.subject.family.frames_per_token(self.subject.model.config)
        rng = np.random.default_rng(self.plan.seed)
        video = rng.integers(0, 256, (self.frames * step, *FRAME_SIZE, 3), dtype=np.uint8)
        Tower(self.subject, video[:step], read).run()
        return Tower(self.subject, video, read)

    @torch.inference_mode()
    def added_bytes(self, case: Case) -> int | None:
        """Bytes that one more prefill adds on a CPU, by torch's counters; None elsewhere, where samples tell."""
        model, prompt, method = self.subject.model, self.prompts[case.content], case.make(self.subject.shape.layers)
        if model.device.type != "cpu":
            return None
        self._use(case.attention)
        context = nullcontext() if method is None else method(model, self.subject.processor, self.bias_cache)
        with context, added_on_cpu() as peak:
            prefill(model, prompt.inputs)
        return peak.added

    def _use(self, attention: str) -> None:
        """Ask the model itself what it runs: another bench may have used it since."""
        if attention != running_attention(self.subject.model):
            self.subject.model.set_attn_implementation(attention)


@dataclass
class Tower:
    """The vision tower on a video of noise, uint8 [T, H, W, 3]; `times` and `reading` grow with every run.

    It is read (attention and keys of one layer) where a method of the plan chooses by it, timed apart.
    """

    subject: Subject
    video: np.ndarray = field(repr=False)
    read: bool
    times: list[float] = field(default_factory=list)
    reading: list[float] = field(default_factory=list)

    @torch.inference_mode()
    def run(self) -> None:
        """Encode the video once, by the clock."""
        pixels = self.subject.processor.video.pixels(self.video)
        watch = Stopwatch(self.subject.model.device)
        with watch("vision"):
            features = encode_video(self.subject.model, pixels, signals=self.read)
        reading = features.signals.ms if features.signals is not None else 0.0
        self.times.append(watch.ms()["vision"] - reading)
        if self.read:
            self.reading.append(reading)


def running_attention(model: Any) -> str:
    """The attention backend that the language model runs now."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def attention_restored(model: Any) -> Iterator[None]:
    """Leave the model with the attention backend it came with."""
    before = running_attention(model)
    try:
        yield
    finally:
        if running_attention(model) != before:
            model.set_attn_implementation(before)


def attention_backends(subject: Subject, plan: PrefillPlan) -> dict[str, str]:
    """The backends that will run, and why each; ModelError for one that cannot."""
    placement = subject.placement
    if not plan.attentions:
        return {placement.attention: placement.attention_reason}
    return dict(choose_attention(placement.device, placement.dtype, name) for name in plan.attentions)


def measure_prefill(
    subject: Subject, plan: PrefillPlan, progress: Progress = lambda line: None, measure: Measure | None = None
) -> dict[str, Any]:
    """Run the plan and return the document: `setup` and one entry in `results` per case.

    `measure` stands in for `Bench.measure` (tests).
    """
    reasons = attention_backends(subject, plan)
    bench = Bench(subject, plan)
    cases = plan.cases(tuple(reasons))
    for case in cases:
        method = case.make(subject.shape.layers)
        if method is not None:
            method.check(subject.shape.layers)
    with attention_restored(subject.model):
        tower = bench.warm_tower()
        if tower is not None and not plan.ttft:
            for _ in range(plan.vision):
                tower.run()
        cold = bench.warm_up(cases, progress) if measure is None else {}
        each_round = tower.run if tower is not None and plan.ttft else lambda: None
        samples = interleaved(cases, plan.rounds, measure or bench.measure, progress, each_round)
        added = {case: bench.added_bytes(case) for case in cases} if measure is None else {}
    vision, reading = (tower.times, tower.reading) if tower is not None else ([], [])
    prompt = bench.prompts[plan.contents[0]]
    return {
        "kind": "prefill",
        "setup": _setup(subject, plan, prompt, reasons),
        "vision_ms": summary(vision) if vision else None,
        "vision_scores_ms": summary(reading) if reading else None,
        "attached_overhead": {case.attention: _overhead(samples, case) for case in cases if case.method == PLAIN},
        "results": [
            {
                **_result(subject, bench.prompts[case.content], case, samples, cold.get(case), vision, reading),
                **({"added_bytes": added[case]} if added.get(case) is not None else {}),
                "ttft": _ttft(case, samples, tower) if tower is not None and plan.ttft else None,
            }
            for case in cases
        ],
    }


def _overhead(samples: dict[Case, list[Sample]], plain: Case) -> dict[str, Any]:
    """Time with nothing active but the runtime attached, over the time of the model as it is."""
    attached = samples[replace(plain, method="vanilla")]
    return asdict(paired_ratio([s.prefill_ms for s in attached], [s.prefill_ms for s in samples[plain]], MIN_ROUNDS))


def _ttft(case: Case, samples: dict[Case, list[Sample]], tower: Tower) -> dict[str, Any]:
    """Times to the first token, tower and prefill of the same round; vanilla's over them, and what that could be.

    The ceiling is vanilla's time over what the case spends before its prefill.
    """
    vanilla = samples[_vanilla_of(case, samples)]
    reads = tower.read and case.method != PLAIN and method_class(case.method).needs_vision
    before = [sum(pair) for pair in zip(tower.times, tower.reading, strict=True)] if reads else tower.times
    own = [ms + sample.warm_ms for ms, sample in zip(before, samples[case], strict=True)]
    whole = [ms + sample.warm_ms for ms, sample in zip(tower.times, vanilla, strict=True)]
    return {
        "ms": summary(own),
        "before_prefill_ms": float(np.median(before)),
        "speedup": asdict(paired_ratio(whole, own, MIN_ROUNDS)),
        "ceiling": asdict(paired_ratio(whole, before, MIN_ROUNDS)),
    }


def _vanilla_of(case: Case, samples: dict[Case, list[Sample]]) -> Case:
    return next(one for one in samples if one.method == "vanilla" and one.attention == case.attention)


def _setup(subject: Subject, plan: PrefillPlan, prompt: Prompt, reasons: dict[str, str]) -> dict[str, Any]:
    layout, placement = prompt.layout, subject.placement
    return {
        "config": subject.name,
        "trained": subject.trained,
        "notes": list(subject.notes),
        "layers": subject.shape.layers,
        "shape": asdict(subject.shape),
        "visual_tokens": len(layout),
        "layout": [layout.frames, layout.rows, layout.cols],
        "text_tokens": prompt.text_tokens,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "device": str(subject.model.device),
        "placement": placement.device_reason,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "attention": reasons,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "contains": CONTAINS,
    }


def _result(
    subject: Subject,
    prompt: Prompt,
    case: Case,
    samples: dict[Case, list[Sample]],
    cold: Sample | None,
    vision: Sequence[float],
    reading: Sequence[float],
) -> dict[str, Any]:
    mine = samples[case]
    vanilla = samples[_vanilla_of(case, samples)]
    times, reference = [s.warm_ms for s in mine], [s.warm_ms for s in vanilla]
    timed = summary(times)
    stages = {
        name: float(np.median([s.stages.get(name, 0.0) for s in mine])) for name in mine[-1].stages if name != COLD
    }
    beside = float(np.median([s.beside_ms for s in mine]))
    vanilla_ms = float(np.median(reference))
    decode = [float(np.median(s.decode_ms)) for s in mine if s.decode_ms]
    decode_vanilla = [float(np.median(s.decode_ms)) for s in vanilla if s.decode_ms]
    speedup, cpu = paired_ratio(reference, times, MIN_ROUNDS), _cpu_ms(mine)
    flops = _flops(subject, prompt, case, mine[-1].run)
    setup_ms = cold.stages.get(COLD) if cold is not None else None
    needs_vision = case.method != PLAIN and method_class(case.method).needs_vision
    scores_ms = float(np.median(reading)) if len(reading) and needs_vision else 0.0
    tower_ms = float(np.median(vision)) + scores_ms if len(vision) else None
    return {
        "method": case.method,
        "retention": case.retention,
        "content": asdict(case.content),
        "attention": case.attention,
        "tokens": _tokens(prompt, mine[-1].run),
        "prefill_ms": timed,
        "stages_ms": stages,
        "table_4": {
            **{column: sum(stages.get(name, 0.0) for name in names) for column, names in TABLE_4.items()},
            "other": sum(ms for name, ms in stages.items() if name not in _IN_TABLE_4),
            "forward": float(np.median([s.warm_ms - s.beside_ms for s in mine])),
            "total": timed["median"],
        },
        "beside_forward": {"ms": beside, "share_of_vanilla": beside / vanilla_ms},
        "vision_scores": {"ms": scores_ms, "share_of_vanilla": scores_ms / vanilla_ms} if scores_ms else None,
        "bias_setup_ms": setup_ms,
        "prefill_cold_ms": None if setup_ms is None else timed["median"] + setup_ms,
        "first_token_ms": {
            "without_vision": timed["median"],
            "with_vision": None if tower_ms is None else timed["median"] + tower_ms,
            "vision_share": None if tower_ms is None else tower_ms / (tower_ms + timed["median"]),
        },
        "decode_ms_per_token": summary(decode) if decode else None,
        "decode_gain": asdict(paired_ratio(decode_vanilla, decode, MIN_ROUNDS)) if decode else None,
        "kv_bytes": mine[-1].kv_bytes,
        "kv_share": mine[-1].kv_bytes / vanilla[-1].kv_bytes,
        "peak_bytes": max((s.peak_bytes for s in mine if s.peak_bytes is not None), default=None),
        "added_bytes": max((s.added_bytes for s in mine if s.added_bytes is not None), default=None),
        "speedup": asdict(speedup),
        "cpu_time_ms": summary(cpu) if cpu else None,
        "speedup_in_cpu_time": asdict(paired_ratio(_cpu_ms(vanilla), cpu, MIN_ROUNDS)) if cpu else None,
        "flops": flops,
        "share_of_flops_ratio": _share(speedup, flops["ratio"]),
        "share_of_executed_ratio": _share(speedup, flops["executed_ratio"]),
    }


def _cpu_ms(samples: Sequence[Sample]) -> list[float]:
    return [s.cpu_ms for s in samples if s.cpu_ms is not None]


def _share(speedup: Ratio, ratio: float) -> float | None:
    return None if speedup.value is None else speedup.value / ratio


def _flops(subject: Subject, prompt: Prompt, case: Case, run: Run | None) -> dict[str, float]:
    """Exact TFLOPs by token counts and as executed, and vanilla's divided by each."""
    shape, n = subject.shape, len(prompt.layout)
    full = exact_tflops(shape, [n] * shape.layers, prompt.text_tokens)
    method = case.make(shape.layers)
    if run is None or method is None:
        return {"tflops": full, "ratio": 1.0, "executed_tflops": full, "executed_ratio": 1.0}
    counts = exact_tflops(shape, run.visual_per_layer, prompt.text_tokens, mlp_per_layer=run.mlp_per_layer)
    executed = prefill_tflops(shape, method, run, prompt.layout.length).exact
    return {
        "tflops": counts,
        "ratio": full / counts,
        "executed_tflops": executed,
        "executed_ratio": full / executed,
    }


def _tokens(prompt: Prompt, run: Run | None) -> dict[str, Any]:
    """What was kept and how, so that a reader sees what the content gave deduplication to do."""
    n = len(prompt.layout)
    if run is None:
        return {"visual": n, "kept": n, "layer_mean": 1.0, "segments": 0, "roles": {}}
    roles = {role.label: int((run.role == role).sum()) for role in Role}
    return {
        "visual": n,
        "kept": len(run.kept),
        "layer_mean": sum(run.visual_per_layer) / len(run.visual_per_layer) / n,
        "segments": len(run.segments),
        "roles": {label: count for label, count in roles.items() if count},
    }


def profiled(subject: Subject, plan: PrefillPlan, rows: int = 25) -> str:
    """torch.profiler's tables of every case on the first content, the plain model left out: a prefill, a decoded token.

    The bias is warm, and the token is the mean over as many as the plan decodes.
    """
    plan = replace(plan, contents=plan.contents[:1], plain=False)
    bench = Bench(subject, plan)
    parts = []
    for case in plan.cases(tuple(attention_backends(subject, plan))):
        with attention_restored(subject.model):
            bench.measure(case)
            name = f"{case.method}, retention {case.retention:g}, {case.content.title}, {case.attention}"
            parts.append(f"Prefill, {name}\n{bench.profile(case, rows)}")
            if plan.decode_tokens:
                parts.append(f"{plan.decode_tokens} decoded tokens, {name}\n{bench.profile(case, rows, decoding=True)}")
    return "\n\n".join(parts)
