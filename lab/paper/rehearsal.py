"""The rehearsal: films of the drawn world, asked about in the formats of the paper's four benchmarks, offline.

Prompts and parsing are the benchmarks' own (`tasks/rehearsal.py` imports them from lmms-eval). The embedded models were
never taught letters, so these scores say that the way works and nothing else; the fifth task asks the questions as the
models learnt them and scores whole sentences, as `evaluate` does.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.world.generate import clip_questions, render_video
from lab.world.records import Question

TASKS = ("rehearsal_videomme", "rehearsal_mvbench", "rehearsal_longvideobench", "rehearsal_mlvu", "rehearsal_open")
SOURCE = Path(__file__).parent / "tasks"
PER_CLIP = 5
OPTIONS = 4
LETTERS = "ABCD"
CLIPS_FOR_WORDS = 40  # enough to meet every word that a kind of question is answered with

Doc = dict[str, Any]


def write_rehearsal(folder: Path, questions: int) -> None:
    """Write films, questions and lmms-eval's task files; `questions` in each of the five tasks, of the same films."""
    folder = folder.resolve()
    films = folder / "films"
    films.mkdir(parents=True, exist_ok=True)
    words = words_by_kind()
    docs: list[Doc] = []
    number = 0
    while len(docs) < questions:
        path = films / f"{number}.mp4"
        if not path.is_file():
            render_video(number, path.with_suffix(".part.mp4"))
            path.with_suffix(".part.mp4").rename(path)
        asked = [one for one in clip_questions(number, "heldout") if len(words[one.kind]) >= OPTIONS]
        for question in asked[: min(PER_CLIP, questions - len(docs))]:
            docs.append(_doc(question, words[question.kind], number, path, len(docs)))
        number += 1
    for task in TASKS:
        name = task.removeprefix("rehearsal_")
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(FORMATS[name](doc))}\n" for doc in docs), "utf-8")
        template = (SOURCE / f"{task}.yaml").read_text("utf-8")
        (folder / f"{task}.yaml").write_text(template.replace("@FOLDER@", str(folder)), "utf-8")
    shutil.copy(SOURCE / "rehearsal.py", folder)


def words_by_kind() -> dict[str, list[str]]:
    """Return the words that questions of each kind are answered with; a kind with too few has no four options."""
    words: defaultdict[str, set[str]] = defaultdict(set)
    for number in range(CLIPS_FOR_WORDS):
        for question in clip_questions(number, "validation", per_kind=9):
            words[question.kind].add(question.word)
    return defaultdict(list, {kind: sorted(found) for kind, found in words.items()})


def _doc(question: Question, words: Sequence[str], clip: int, path: Path, number: int) -> Doc:
    rng = np.random.default_rng((clip, number))
    others = [str(word) for word in rng.permutation([word for word in words if word != question.word])]
    options = [str(word) for word in rng.permutation([question.word, *others[: OPTIONS - 1]])]
    return {
        "path": str(path),
        "clip": clip,
        "kind": question.kind,
        "question": question.text,
        "sentence": question.answer,
        "options": options,
        "right": options.index(question.word),
    }


def _videomme(doc: Doc) -> Doc:
    options = [f"{letter}. {word}" for letter, word in zip(LETTERS, doc["options"], strict=True)]
    return {
        "path": doc["path"],
        "videoID": str(doc["clip"]),
        "question_id": doc["question"],
        "duration": "short",
        "domain": "Life Record",
        "sub_category": "Daily Life",
        "task_type": "Attribute Perception",
        "question": doc["question"],
        "options": options,
        "answer": LETTERS[doc["right"]],
    }


def _mvbench(doc: Doc) -> Doc:
    right = doc["options"][doc["right"]]
    return {
        "path": doc["path"],
        "video": Path(doc["path"]).name,
        "question": doc["question"],
        "candidates": doc["options"],
        "answer": right,
    }


def _longvideobench(doc: Doc) -> Doc:
    return {
        "path": doc["path"],
        "id": f"{doc['clip']}-{doc['question']}",
        "video_path": Path(doc["path"]).name,
        "question": doc["question"],
        **{f"option{i}": word for i, word in enumerate(doc["options"])},
        "option4": "N/A",
        "correct_choice": doc["right"],
        "answer": LETTERS[doc["right"]],
        "duration_group": 15,
        "question_category": doc["kind"],
    }


def _mlvu(doc: Doc) -> Doc:
    options = "\n".join(f"({letter}) {word}" for letter, word in zip(LETTERS, doc["options"], strict=True))
    return {
        "path": doc["path"],
        "video_name": Path(doc["path"]).name,
        "question": f"{doc['question']}\n{options}",
        "answer": LETTERS[doc["right"]],
        "task_type": "plotQA",
    }


def _open(doc: Doc) -> Doc:
    return {"path": doc["path"], "question": doc["question"], "answer": doc["sentence"], "kind": doc["kind"]}


FORMATS = {
    "videomme": _videomme,
    "mvbench": _mvbench,
    "longvideobench": _longvideobench,
    "mlvu": _mlvu,
    "open": _open,
}
