"""What the rehearsal's YAML names: the benchmarks' own prompts and answer parsing, on films made here."""

from __future__ import annotations

from typing import Any

from lmms_eval.tasks.longvideobench.utils import (
    longvideobench_aggregate_results,
    longvideobench_doc_to_text,
    longvideobench_process_results,
)
from lmms_eval.tasks.mlvu.utils import mlvu_doc_to_text, mlvu_process_results
from lmms_eval.tasks.mvbench.utils import mvbench_aggregate_results, mvbench_doc_to_text, mvbench_process_results
from lmms_eval.tasks.videomme.utils import videomme_doc_to_text, videomme_process_results

Doc = dict[str, Any]

__all__ = [
    "longvideobench_aggregate_results",
    "longvideobench_doc_to_text",
    "longvideobench_process_results",
    "mlvu_doc_to_text",
    "mlvu_process_results",
    "mvbench_aggregate_results",
    "mvbench_doc_to_text",
    "mvbench_process_results",
    "open_process_results",
    "open_text",
    "share_right",
    "video",
    "videomme_doc_to_text",
    "videomme_process_results",
]


def video(doc: Doc) -> list[str]:
    """Return the film."""
    return [doc["path"]]


def open_text(doc: Doc) -> str:
    """Return the bare question, as the embedded models were trained on it."""
    return doc["question"]


def open_process_results(doc: Doc, results: list[str]) -> dict[str, Any]:
    """Hold an answer against the sentence, as `lab.world.records.Question.correct` does."""
    said, expected = (text.strip().rstrip(".").lower() for text in (results[0], doc["answer"]))
    return {"exact": {"pred_answer": said, "answer": expected}}


def share_right(results: list[dict[str, Any]]) -> float:
    """Return the percentage of right answers; the benchmarks' own means are over categories that films here lack."""
    return 100 * sum(one["pred_answer"] == one["answer"] for one in results) / len(results)
