"""What a comparison came to, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sharp_demo import strings
from sharp_demo.records import Result
from sharp_demo.views.summary import answers_compare, baseline_of, comparable, same_answer, words

SAME_SPEED = 0.05  # a ratio this near to one is no difference


def verdict(results: Sequence[Result], missing: Sequence[Mapping[str, str]] = (), *, knows_little: bool = False) -> str:
    """Return what was dropped, whose answer changed and how much faster the prefill was; empty without any result.

    Methods that came to the same stand together, ShaRP's first. An answer is compared where it is whole and not empty.

    Parameters
    ----------
    results : what each method did.
    missing : label and kind (`not_run` or that of a failure) of methods without a result.
    knows_little : whether the clip is foreign to a model that knows only its own world: its answers mean nothing.
    """
    if not results:
        return ""
    baseline = baseline_of(results)
    pruned = [one for one in results if one.method != "vanilla"]
    parts = [_dropped(pruned), _reference(baseline, pruned, missing)]
    if baseline is not None and baseline.status == "done":
        groups: dict[str, list[Result]] = {}
        for result in sorted(pruned, key=lambda one: one.method != "sharp"):
            if result.status == "done":
                groups.setdefault(_answer(result, baseline), []).append(result)
        # The speed of the first group is enough: beyond the answer, the methods differ little in it.
        for number, (answer, members) in enumerate(groups.items()):
            speed = "" if number else _speed([one for one in members if comparable(one, baseline)])
            told = ", ".join(part for part in (answer, speed) if part)
            parts.append(f"{strings.listing([one.label for one in members])}: {told}." if told else "")
    stopped = [one.label for one in pruned if one.status == "stopped"]
    parts.append(strings.VERDICT["stopped"].format(names=strings.listing(stopped)) if stopped else "")
    for key, known in (("not_run", True), ("failed", False)):
        names = [one["label"] for one in missing if (one["kind"] == "not_run") is known]
        parts.append(strings.VERDICT[key].format(names=strings.listing(names)) if names else "")
    if knows_little:
        parts.append(strings.VERDICT["foreign"])
    return " ".join(part for part in parts if part)


def _dropped(pruned: Sequence[Result]) -> str:
    """Return the share of the visual tokens that the methods dropped, as achieved."""
    shares = [round(100 * (1 - one.tokens.retention)) for one in pruned]
    if not shares:
        return ""
    if max(shares) == 0:
        return strings.VERDICT["none_dropped"]
    return strings.dropped(min(shares), max(shares))


def _reference(baseline: Result | None, pruned: Sequence[Result], missing: Sequence[Mapping[str, str]]) -> str:
    """Return why there is no answer to compare with, or nothing to compare; empty where there is both."""
    if baseline is None:
        known = any(one["label"] == strings.VANILLA for one in missing)
        return "" if known else strings.VERDICT["no_vanilla"]
    if baseline.status == "stopped":
        return strings.VERDICT["vanilla_stopped"]
    if not words(baseline.answer):
        return strings.VERDICT["vanilla_empty"]
    return "" if pruned or missing else strings.VERDICT["alone"]


def _answer(result: Result, baseline: Result) -> str:
    """Return what to say of a whole answer: empty, the same, or another; nothing where vanilla's is empty."""
    if not words(result.answer):
        return strings.VERDICT["empty"]
    if not answers_compare(result, baseline):
        return ""
    return strings.VERDICT["same" if same_answer(result.answer, baseline.answer) else "another"]


def _speed(members: Sequence[Result]) -> str:
    """Return the measured prefill against vanilla's; in processor time where the rounds disagree."""
    timed = [one for one in members if one.speedup is not None]
    if not timed:
        return ""
    wall = {one.label: one.speedup.prefill.value for one in timed if one.speedup}
    cpu = {one.label: one.speedup.prefill_cpu.value for one in timed if one.speedup and one.speedup.prefill_cpu}
    known = [{label: value for label, value in ratios.items() if value is not None} for ratios in (wall, cpu)]
    best = max(known, key=len)
    if not best:
        return strings.VERDICT["noisy"]
    clock = strings.VERDICT["processor"] if best is known[1] and len(known[1]) > len(known[0]) else ""
    text = strings.prefill_speed(min(best.values()), max(best.values()), SAME_SPEED, clock)
    noisy = [one.label for one in timed if one.label not in best]
    return strings.too_noisy_for(text, noisy) if noisy else text
