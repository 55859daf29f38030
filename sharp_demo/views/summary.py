"""The key figures of a result, formatted once for the page and the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from sharp_demo import strings
from sharp_demo.records import Ratio, Result


@dataclass(frozen=True)
class Figure:
    """One figure as shown: a short label, the formatted value, what exactly it contains; `headline`: in large type."""

    key: str
    label: str
    value: str
    help: str
    headline: bool = False


def baseline_of(results: Sequence[Result]) -> Result | None:
    """Return the unpruned result that speed-ups are measured against, or None when vanilla did not run."""
    return next((result for result in results if result.method == "vanilla"), None)


def comparable(result: Result, baseline: Result) -> bool:
    """Return True when both saw the same frames: where memory was short, a result saw fewer (its notes say so)."""
    return result.tokens.visual == baseline.tokens.visual


def answers_compare(result: Result, baseline: Result) -> bool:
    """Return whether a result's answer can be told the same as vanilla's or another: both are whole."""
    return result.method != "vanilla" and "stopped" not in (result.status, baseline.status)


def flops_ratio(result: Result, baseline: Result, convention: Literal["exact", "paper"] = "exact") -> float:
    """Return vanilla's prefill FLOPs over this method's, by one of the two counts."""
    vanilla, own = (one.tflops.exact if convention == "exact" else one.tflops.paper for one in (baseline, result))
    return vanilla / max(own, 1e-30)


def format_ms(ms: float | None) -> str:
    """Return milliseconds with three significant figures, in seconds from 10 s on."""
    if ms is None:
        return strings.NOT_MEASURED
    if ms >= 10_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def format_flops(tflops: float) -> str:
    """Return TFLOPs, or GFLOPs and MFLOPs for small models."""
    for scale, unit in ((1.0, "T"), (1e3, "G"), (1e6, "M")):
        if abs(tflops) * scale >= 1 or unit == "M":
            return f"{tflops * scale:.3g} {unit}"
    raise AssertionError("unreachable")


def format_bytes(count: int | float | None) -> str:
    """Return bytes in MB (10^6) or GB."""
    if count is None:
        return strings.NOT_MEASURED
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def format_ratio(ratio: float) -> str:
    return f"{ratio:.2f}×"


def format_measured(ratio: Ratio | None) -> str:
    """Return a measured ratio, or that the rounds disagree too much to give one."""
    if ratio is None:
        return strings.NOT_TIMED
    if ratio.value is None:
        return strings.too_noisy(ratio.low or 0.0, ratio.high or 0.0)
    return format_ratio(ratio.value)


# What is not known before the timing rounds.
TIMED = ("first_token_speedup", "speedup", "rounds", "cpu", "prefill", "first_token", "parts", "vision", "total")


def figures_of(result: Result, baseline: Result | None, *, pending: bool = False) -> list[Figure]:
    """Return the key figures of one column, headline figures first; `pending`: its timing rounds are still to come."""
    against = baseline if baseline is not None and result.method != "vanilla" else None
    headlines = _headlines(result, against if against is not None and comparable(result, against) else None)
    values = {**headlines, **{key: value for key, value in _details(result).items() if key not in headlines}}
    if pending and not result.latency_ms.rounds:
        values = {key: strings.TO_BE_TIMED if key in TIMED else value for key, value in values.items()}
    return [
        Figure(key, strings.FIGURES[key][0], value, strings.FIGURES[key][1], key in headlines)
        for key, value in values.items()
    ]


def _headlines(result: Result, baseline: Result | None) -> dict[str, str]:
    """Return what was kept, and first token and prefill: against vanilla's where `baseline` is given."""
    tokens, latency, speedup = result.tokens, result.latency_ms, result.speedup
    kept = {"kept": f"{tokens.kept} / {tokens.visual} ({tokens.retention:.1%})"}
    if baseline is None:
        return {**kept, "first_token": format_ms(latency.first_token), "prefill": format_ms(latency.prefill)}
    first = format_measured(speedup.first_token if speedup else None)
    if speedup is not None and speedup.first_token.value is not None:
        first = strings.of_at_most(first, format_ratio(speedup.ceiling))
    return {
        **kept,
        "first_token_speedup": first,
        "speedup": format_measured(speedup.prefill if speedup else None),
        "flops_ratio": format_ratio(flops_ratio(result, baseline)),
    }


def _details(result: Result) -> dict[str, str]:
    tokens, latency, speedup = result.tokens, result.latency_ms, result.speedup
    reading, seeing = latency.decode_video, latency.before_prefill - latency.decode_video
    values = {}
    if speedup is not None:
        ratio, cpu = speedup.prefill, speedup.prefill_cpu
        values["rounds"] = strings.rounds(ratio.low or 0.0, ratio.high or 0.0, ratio.rounds)
        values |= {"cpu": format_measured(cpu)} if cpu else {}
    values |= {
        "first_token": format_ms(latency.first_token),
        "parts": " + ".join(format_ms(ms) for ms in (reading, seeing, latency.prefill)),
        "vision": f"{seeing / latency.first_token:.0%}",
        **_encoded(result),
        "before_prefill": format_ms(latency.before_prefill),
        "prefill": format_ms(latency.prefill),
    }
    if result.tflops.setup:
        values["bias_setup"] = strings.once(
            format_ms(latency.bias_setup) if latency.bias_setup else "", format_flops(result.tflops.setup)
        )
    values |= {
        "decode": format_ms(latency.decode_per_token),
        "total": format_ms(latency.total),
        "tflops": f"{format_flops(result.tflops.paper)} / {format_flops(result.tflops.exact)}",
        **_tower(result),
        "kv": format_bytes(result.memory.kv_bytes),
        "peak": format_bytes(result.memory.peak_bytes),
        "added": format_bytes(result.memory.added_bytes),
        "layer_mean": f"{tokens.layer_mean:.1%}",
    }
    # What this device or this answer does not have is left out.
    return {key: value for key, value in values.items() if value != strings.NOT_MEASURED}


def _encoded(result: Result) -> dict[str, str]:
    """Return how many layout frames the tower encoded, where it was not all of them."""
    encoded, given = result.encoded_frames, result.layout.frames
    return {"encoded": strings.of_frames(encoded, given)} if encoded is not None and encoded < given else {}


def _tower(result: Result) -> dict[str, str]:
    """Return the vision tower's FLOPs by both counts, where they were counted."""
    paper, exact = result.tflops.tower_paper, result.tflops.tower_exact
    if paper is None or exact is None:
        return {}
    return {"tower": f"{format_flops(paper)} / {format_flops(exact)}"}


def race_of(result: Result) -> list[tuple[str, float]]:
    """Return the measured parts of the time to the first token, in milliseconds, in the order in which they ran.

    Names: read (the video), see (vision tower), prefill. Their sum is `latency_ms.first_token`.
    """
    latency = result.latency_ms
    seeing = latency.before_prefill - latency.decode_video
    return [("read", latency.decode_video), ("see", seeing), ("prefill", latency.prefill)]


def words(text: str) -> list[str]:
    """Return the words of an answer as they are compared: without case and outer punctuation."""
    return [bare for word in text.split() if (bare := re.sub(r"^\W+|\W+$", "", word.casefold()))]


def differing_words(answer: str, reference: str) -> list[tuple[str, bool]]:
    """Split an answer into pieces, words and the blanks between them; True for words that `reference` lacks there."""
    pieces = re.findall(r"\s+|\S+", answer)
    places = [place for place, piece in enumerate(pieces) if words(piece)]
    mine = [words(pieces[place])[0] for place in places]
    same: set[int] = set()
    for block in SequenceMatcher(None, mine, words(reference), autojunk=False).get_matching_blocks():
        same.update(places[block.a : block.a + block.size])
    return [(piece, place in places and place not in same) for place, piece in enumerate(pieces)]


def same_answer(answer: str, reference: str) -> bool:
    """Return whether two answers agree word for word, case and punctuation aside."""
    return words(answer) == words(reference)
