"""From answers and scores to a document: paper, ours, the difference and what is certain of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from lab.paper.harness import Score
from lab.paper.plan import Benchmark, Row
from lab.stats import ClipBootstrap, mcnemar

MARGIN = 0.01  # "at most one point worse"
GROUPS = {"videomme": ("short", "medium", "long")}
ROUND = 4

Document = dict[str, Any]


@dataclass(frozen=True)
class Verdicts:
    """All questions of one benchmark, in one order for all methods.

    Attributes
    ----------
    clips : video of each question. categories : as the benchmark groups them. right : by label, bool [n].
    """

    clips: np.ndarray
    categories: np.ndarray
    right: Mapping[str, np.ndarray]

    def of_category(self, category: str) -> Verdicts:
        chosen = self.categories == category
        return Verdicts(
            self.clips[chosen], self.categories[chosen], {name: values[chosen] for name, values in self.right.items()}
        )


def verdicts(scores: Mapping[str, Sequence[Score]], videos: Mapping[tuple[str, int], str]) -> Verdicts:
    """Put the scores of every run in one order. ValueError where runs were not asked the same questions."""
    tables = {label: {(one.task, one.doc_id): one for one in found} for label, found in scores.items()}
    keys = sorted(next(iter(tables.values())))
    for label, found in tables.items():
        if sorted(found) != keys:
            raise ValueError(f"{label} was not asked the same questions as the others")
    first = next(iter(tables.values()))
    return Verdicts(
        np.array([videos[key] for key in keys]),
        np.array([first[key].category for key in keys]),
        {label: np.array([found[key].right for key in keys]) for label, found in tables.items()},
    )


def weights(categories: np.ndarray, mean_of_categories: bool) -> np.ndarray:
    """What each verdict counts, [n] with mean 1: equally, or so that every category weighs the same."""
    if not mean_of_categories:
        return np.ones(len(categories))
    names, numbers, counts = np.unique(categories, return_inverse=True, return_counts=True)
    return np.asarray(len(categories) / (len(names) * counts[numbers]))


def score_document(found: Verdicts, benchmark: Benchmark, label: str, vanilla: str, printed: float | None) -> Document:
    """How one run did on one benchmark: shares and intervals, against the paper and against vanilla.

    `paper` and `difference` are None where the paper prints nothing for this model. A difference to the paper has our
    interval only: the paper prints none.
    """
    weight = weights(found.categories, benchmark.mean_of_categories)
    bootstrap = ClipBootstrap(found.clips)
    ours, reference = found.right[label] * weight, found.right[vanilla] * weight
    mean, interval = float(ours.mean()), bootstrap.mean_interval(ours)
    paper = None if printed is None else printed / 100
    gap, gap_interval = bootstrap.difference(ours, reference)
    lower = bootstrap.lower_bound(ours, reference)
    split = mcnemar(found.right[label], found.right[vanilla])
    return {
        "n": len(ours),
        "videos": bootstrap.clips,
        "ours": _rounded(mean),
        "ci95": [_rounded(end) for end in interval],
        "paper": paper,
        "difference": None if paper is None else _rounded(mean - paper),
        "difference_ci95": None if paper is None else [_rounded(end - paper) for end in interval],
        "to_vanilla": _rounded(gap),
        "to_vanilla_ci95": [_rounded(end) for end in gap_interval],
        "only_this": split.only_first,
        "only_vanilla": split.only_second,
        "mcnemar_p": _rounded(split.p),
        "at_most_a_point_worse": bool(lower > -MARGIN),
    }


def row_document(row: Row, records: Sequence[Mapping[str, Any]], scores: Mapping[str, Document]) -> Document:
    """One row: what was kept and what it took, from the log, next to its scores."""
    whole = [score["ours"] for score in scores.values()]
    printed = [score["paper"] for score in scores.values()]
    return {
        "label": row.run.label,
        "method": row.run.method,
        "options": dict(row.run.options),
        "match": row.run.match,
        "printed_retention": row.printed_retention,
        "printed_tflops": row.tflops,
        "printed_prefill_ms": row.prefill_ms,
        "kept": _rounded(float(np.mean([record["tokens"]["retention"] for record in records]))),
        "layer_mean": _rounded(float(np.mean([record["tokens"]["layer_mean"] for record in records]))),
        "tflops": float(np.mean([record["tflops"]["paper"] for record in records])),
        "prefill_ms": round(median(record["ms"]["prefill"] for record in records), 1),
        "first_token_ms": round(median(record["ms"]["first_token"] for record in records), 1),
        "stages_ms": _stages(records),
        "kept_by_frame": _mean_by_frame(records),
        "scores": dict(scores),
        "average": _rounded(float(np.mean(whole))) if whole else None,
        "paper_average": None if None in printed or not printed else _rounded(float(np.mean(printed))),
    }


def attention_document(records: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Mean attention by layer and frame over all questions, raw and debiased.

    Videos that gave fewer layout frames than most are left out.
    """
    (frames, _), *_ = Counter(len(record["attention"]["raw"][0]) for record in records).most_common()
    means = {}
    for name in ("raw", "debiased"):
        maps = [record["attention"][name] for record in records if len(record["attention"][name][0]) == frames]
        means[name] = [[round(float(value), 6) for value in row] for row in np.mean(np.array(maps), axis=0)]
    return means


def setup_document(records: Sequence[Mapping[str, Any]]) -> Document:
    """What made the answers: versions, commits, devices; frames as asked and as the videos really had."""

    def counted(name: str) -> list[str]:
        return [str(value) for value, _ in Counter(str(record[name]) for record in records).most_common()]

    versions: defaultdict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record["versions"].items():
            versions[name].add(version)
    distinct = [record["distinct_frames"] for record in records if record["distinct_frames"] is not None]
    return {
        "commits": counted("commit"),
        "devices": counted("device"),
        "dtypes": counted("dtype"),
        "attention": counted("attention"),
        "versions": {name: sorted(found) for name, found in sorted(versions.items())},
        "frames": sorted({record["frames"] for record in records}),
        "fewest_distinct_frames": min(distinct, default=None),
    }


def _stages(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(name for record in records for name in record["stages_ms"])
    return {name: round(median(record["stages_ms"].get(name, 0.0) for record in records), 2) for name in names}


def _mean_by_frame(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean share of the kept tokens in each layout frame, over the records with the most usual number of frames."""
    (frames, _), *_ = Counter(len(record["kept_by_frame"]) for record in records).most_common()
    rows = np.array([record["kept_by_frame"] for record in records if len(record["kept_by_frame"]) == frames], float)
    shares = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    return [_rounded(float(value)) for value in shares.mean(0)]


def _rounded(value: float) -> float:
    return round(value, ROUND)
