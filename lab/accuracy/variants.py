"""Which methods a benchmark runs: names with options, and the sets that the shipped tables use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lab.accuracy.oracles import EvidenceOracle, Oracle, SaliencyOracle, evidence_slots, slots_of
from lab.world.records import Question, SyntheticClip
from sharp_demo.backbones.layout import VisualLayout
from sharp_demo.errors import MethodError
from sharp_demo.pruning.floors import Latest, Random, Uniform
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.registry import list_methods, make_method, method_class

ORACLES: dict[str, type[Oracle]] = {cls.name: cls for cls in (SaliencyOracle, EvidenceOracle)}
FLOORS = (Random.name, Uniform.name, Latest.name)


@dataclass(frozen=True)
class Variant:
    """A method with options under a name of its own, e.g. "random:layer=1"."""

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def group(self) -> str:
        """ "method", "floor", "oracle" or "reference" (vanilla)."""
        if self.method in ORACLES:
            return "oracle"
        return {"vanilla": "reference"}.get(self.method, "floor" if self.method in FLOORS else "method")

    def build(self, retention: float) -> Method:
        """The method, without what depends on the question. Raises MethodError on a wrong option."""
        if self.method in ORACLES:
            known = {"layer"}
            if set(self.options) - known:
                raise MethodError(f"{self.method}: there is no option {min(set(self.options) - known)!r}; it has layer")
            return ORACLES[self.method](retention=retention, **self.options)
        return make_method(self.method, retention, self.options)


@dataclass(frozen=True)
class Subject:
    """A question about a clip, and what oracles know about it."""

    clip: SyntheticClip
    question: Question

    def evidence(self, layout: VisualLayout) -> tuple[int, ...]:
        """Slots of the tokens without which the answer is unknown; empty where many others would do."""
        return slots_of(self.question.evidence_cells, layout, self.clip.grid)

    def knowledge(self, variant: Variant, layout: VisualLayout) -> dict[str, Any]:
        """Options that depend on clip and question: what an oracle knows, and a seed of its own for every clip."""
        options: dict[str, Any] = {}
        if variant.method in (*ORACLES, Random.name):
            options["seed"] = self.clip.seed
        if variant.method == SaliencyOracle.name:
            options["slots"] = slots_of(self.clip.things, layout, self.clip.grid)
        if variant.method == EvidenceOracle.name:
            options["slots"] = evidence_slots(self.question, layout, self.clip.grid)
        return options


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Read "vanilla,fastv:layer=1,sharp:segm=false:regd=false", or the name of a set ("core", "all", "ablation").

    Raises MethodError for an unknown method, an unreadable or wrong option, or a variant named twice.
    """
    variants: list[Variant] = []
    for word in (word.strip() for word in text.split(",") if word.strip()):
        variants += sets()[word] if word in sets() else [_parse(word)]
    names = [variant.name for variant in variants]
    if not names:
        raise MethodError(f"no method was named; there are {', '.join((*sets(), *list_methods(), *ORACLES))}")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise MethodError(f"{min(repeated)} is named twice in --methods {text}")
    for variant in variants:
        variant.build(0.5)
    return tuple(variants)


def _parse(word: str) -> Variant:
    method, *parts = word.split(":")
    if method not in (*list_methods(), *ORACLES):
        raise MethodError(
            f"there is no method named {method!r}; there are {', '.join((*sets(), *list_methods(), *ORACLES))}"
        )
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals):
            raise MethodError(f"cannot read the option {part!r} of {method}; write {method}:name=value")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return variant(method, **options)


def variant(method: str, label: str = "", **options: Any) -> Variant:
    """A variant named after its method and options; a label made of them unless one is given."""
    cls = ORACLES.get(method) or method_class(method)
    name = ":".join([method, *(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in options.items())])
    # A default of 0 means that the layer depends on the model's depth.
    layer = next(
        (options.get("layer", option.default or None) for option in fields(cls) if option.name == "layer"), None
    )
    cut = "" if layer is None else f"K={layer}"
    rest = [f"{key}={value}" for key, value in options.items() if key != "layer"]
    return Variant(name, method, options, label or ", ".join(filter(None, [cls.title, *rest, cut])))


def _modules(label: str, segm: bool, posc: bool, regd: bool) -> Variant:
    return variant("sharp", label, segm=segm, posc=posc, regd=regd)


# Of each selection that can drop before layer 1 as ShaRP does, both cuts: before layer 1 and before layer 2.
CORE = (
    variant("vanilla"),
    *(variant(name) for name in ("fastv", "feather", "sharp", *FLOORS, *ORACLES)),
    *(variant(name, layer=1) for name in ("fastv", *FLOORS, *ORACLES)),
    variant("sharp", layer=2),
)
# Rows of Table 5 of the paper, then each reading the other way round.
ABLATION = (
    variant("vanilla"),
    _modules("Original", segm=False, posc=False, regd=False),
    _modules("PosC", segm=False, posc=True, regd=False),
    _modules("PosC+SegM", segm=True, posc=True, regd=False),
    _modules("PosC+RegD", segm=False, posc=True, regd=True),
    _modules("SegM+RegD", segm=True, posc=False, regd=True),
    variant("sharp", "All (ShaRP)"),
    variant("sharp", "All, score_layer=first", score_layer="first"),
    variant("sharp", "Original, score_layer=first", segm=False, posc=False, regd=False, score_layer="first"),
    variant("sharp", "PosC, score_layer=first", segm=False, posc=True, regd=False, score_layer="first"),
    variant("sharp", "All, score_space=logit", score_space="logit"),
    variant("sharp", "All, prefilter_absorb=mean", prefilter_absorb="mean"),
    variant("sharp", "All, dedup_absorb=drop", dedup_absorb="drop"),
    variant("random", layer=1),
)
# Methods that prune before the LLM and renumber what is left, and the same with positions kept.
RENUMBERED = (
    variant("vanilla"),
    *(
        one
        for name in ("visionzip", "evs", "sharpv", "holitom")
        for one in (variant(name), variant(name, reindex_positions=False))
    ),
)


def every_method() -> tuple[Variant, ...]:
    """Every registered method as it is by default."""
    return tuple(variant(name) for name in list_methods())


def sets() -> dict[str, Sequence[Variant]]:
    """Named sets: "core" is the paper's main comparison with floors and oracles, "all" every registered method."""
    return {"core": CORE, "ablation": ABLATION, "all": every_method()}
