"""Train a model of the rendered world: `python -m lab.tabletop.train`, on clips that `cache` has rendered.

The stages are those of `lab.world.train`: tower alone, its features cached, the tokens formed of them, then the
language model from few tokens to all. Every step draws its data from (seed, stage, step); `--resume` goes on from the
last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import typer

from lab.tabletop.cache import FOLDER, cached_path, load_takes
from lab.tabletop.packing import Pool, draw_sample
from lab.tabletop.questions import ALL_KINDS
from lab.tabletop.recipe import Recipe, corpus
from lab.tabletop.score import falsely_untold, judge, judge_foreign
from lab.tabletop.studio import MODEL_SIDE
from lab.tabletop.vision import LABELS, Footage, Heads, footage, look_near, mirrored, token_labels
from lab.world.packing import Prompts, pack
from lab.world.recipe import Stage
from lab.world.score import hidden_states, tables
from lab.world.train import Optimizers, Training, falling_rate, rounded, stage_rate, versions
from lab.world.vision import NOISE, patch_features, token_former, tower_parameters, visual_tokens
from sharp_demo.backbones.families import FAMILIES, family_named, family_of
from sharp_demo.backbones.processor import Processor
from sharp_demo.backbones.tiny import write_checkpoint
from sharp_demo.errors import InputError

NOTE = (
    "Tiny model trained on rendered clips of things on a table: to anything else it answers that it cannot tell, and "
    "the ranking of methods on it says nothing about 7B models."
)
SHIPPED_AT = 0.9  # exact match on validation clips from which a kind of question is shipped
LOG_EVERY = 25
TOKENS = 1536
FAMILY = FAMILIES[0].name


def train(
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    work: Path,
    clips: Path = FOLDER,
    resume: bool = False,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Train, write the checkpoint into `out`, and return the log.

    Parameters
    ----------
    work : folder for the run's checkpoints and its features.
    clips : folder of the rendered clips.
    resume : go on from `work` if it holds a checkpoint.
    stop_after : leave after this many language-model steps, as an interrupted run would.
    """
    recipe = recipe or Recipe()
    work.mkdir(parents=True, exist_ok=True)
    paths = {
        split: [cached_path(clips, split, number) for number in range(count)]
        for split, count in (("train", recipe.pool_clips), ("crowd", recipe.crowds))
    }
    for split, wanted in paths.items():
        missing = sum(not path.is_file() for path in wanted)
        if missing:
            raise InputError(f"{missing} of {len(wanted)} files of {split} are not in {clips}; run lab.tabletop.cache")
    run = Training(FAMILY, seed, recipe, work, torch.device("cpu"))
    blank = write_checkpoint(work / "blank", FAMILY, recipe.shape, seed=seed, sentences=corpus())
    model_class = getattr(transformers, family_named(FAMILY).model_class)
    run.model = model_class.from_pretrained(blank, dtype=torch.float32, attn_implementation="sdpa")
    run.processor = Processor.from_pretrained(blank)
    state: dict[str, Any] = {"phase": "tower", "step": 0}
    if resume and (work / "checkpoint.pt").is_file():
        state = run.load()
        run.say({"event": "resume", "phase": state["phase"], "step": state["step"], **versions()})
    else:
        (work / "pool.pt").unlink(missing_ok=True)  # of another tower
        look_near(run.model)
        run.say({"event": "start", "family": FAMILY, "seed": seed, **versions()})
    if state["phase"] == "tower":
        _train_tower(run, footage(paths["crowd"], recipe.foreign_clips), state)
        state = {"phase": "tokens", "step": 0}
    shown = footage(paths["train"], recipe.foreign_clips)
    features = _features(run, shown)
    if state["phase"] == "tokens":
        run.say({"event": "pool", "frames": len(features)})
        _train_tokens(run, shown, features)
        state = {"phase": "language", "step": 0}
    if not _train_language(run, Pool(shown.scenes, features), state, stop_after):
        return run.log
    _finish(run, out, clips)
    return run.log


def _noisy(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    gain = rng.uniform(0.92, 1.08, (len(frames), 1, 1, 1)).astype(np.float32)
    noise = rng.standard_normal(frames.shape, np.float32) * NOISE
    return np.clip(frames * gain + noise, 0, 255).astype(np.uint8)


def _train_tower(run: Training[Recipe], shown: Footage, state: dict[str, Any]) -> None:
    recipe, model = run.recipe, run.model
    heads = _new_heads(run, recipe.shape.vision_width)
    parameters = [p for _, p in tower_parameters(model)]
    optimizers = Optimizers(
        [p for p in parameters if p.ndim == 2],
        [p for p in parameters if p.ndim != 2] + list(heads.parameters()),
        recipe.tower_muon,
        recipe.adam,
    )
    if "heads" in state:
        heads.load_state_dict(state["heads"])
        optimizers.load_state_dict(state["optimizers"])
    is_foreign = shown.labels[:, 0, 0, 0] == LABELS["surface"].index("foreign")
    ours, others = np.flatnonzero(~is_foreign), np.flatnonzero(is_foreign)
    for step in range(state["step"], recipe.tower_steps):
        rng = np.random.default_rng((run.seed, 1, step))
        picked = np.concatenate((rng.choice(ours, recipe.tower_images), rng.choice(others, recipe.tower_foreign)))
        frames, labels = shown.frames[picked], shown.labels[picked]
        turned = rng.permutation(len(picked))[::2]
        frames[turned], labels[turned] = mirrored(frames[turned], labels[turned])
        patches = patch_features(model, run.processor.video, _noisy(rng, frames)[:, None])
        truth = torch.from_numpy(labels)
        loss, accuracy = heads(patches.flatten(0, 2), truth.flatten(0, 2))
        optimizers.step(loss, falling_rate(step, recipe.tower_steps, recipe.warmup))
        if (step + 1) % LOG_EVERY == 0:
            run.say({"stage": "tower", "step": step + 1, "loss": round(loss.item(), 4), "accuracy": rounded(accuracy)})
        if (step + 1) % (2 * recipe.save_every) == 0:
            run.save("tower", step + 1, heads=heads.state_dict(), optimizers=optimizers.state_dict())
    run.save("tokens", 0)


def _new_heads(run: Training[Recipe], width: int) -> Heads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return Heads(width)


@torch.no_grad()
def _features(run: Training[Recipe], shown: Footage) -> torch.Tensor:
    """Patch features of every frame, float16 [n, 100, 4, d], cached in the run's folder."""
    cached = run.work / "pool.pt"
    if cached.is_file():
        return torch.load(cached, weights_only=True)
    chunks = []
    for start in range(0, len(shown.frames), 16):
        rng = np.random.default_rng((run.seed, 7, start))
        frames = _noisy(rng, shown.frames[start : start + 16])
        chunks.append(patch_features(run.model, run.processor.video, frames[:, None]).half())
    features = torch.cat(chunks)
    torch.save(features, cached.with_suffix(".tmp"))
    os.replace(cached.with_suffix(".tmp"), cached)
    return features


def _train_tokens(run: Training[Recipe], shown: Footage, features: torch.Tensor) -> None:
    """Teach the projector to keep in a visual token what the tower saw."""
    former = list(token_former(run.model).parameters())
    heads = _new_heads(run, run.recipe.shape.width)
    optimizers = Optimizers(
        [p for p in former if p.ndim == 2],
        [p for p in former if p.ndim != 2] + list(heads.parameters()),
        run.recipe.tower_muon,
        run.recipe.adam,
    )
    truth = torch.from_numpy(token_labels(shown.labels.reshape(-1, *shown.labels.shape[2:])))
    rows = features.flatten(0, 1)
    groups = (
        ((truth[:, 1] > 0).nonzero()[:, 0], TOKENS * 3 // 4),
        ((truth[:, 1] == 0).nonzero()[:, 0], TOKENS // 4),
    )
    for step in range(run.recipe.token_steps):
        rng = np.random.default_rng((run.seed, 3, step))
        picked = torch.cat([group[rng.integers(len(group), size=size)] for group, size in groups])
        loss, accuracy = heads(visual_tokens(run.model, rows[picked].float()), truth[picked])
        optimizers.step(loss, falling_rate(step, run.recipe.token_steps, 1))
        if (step + 1) % LOG_EVERY == 0:
            run.say({"stage": "tokens", "step": step + 1, "loss": round(loss.item(), 4), "accuracy": rounded(accuracy)})
    run.save("language", 0)


def _train_language(run: Training[Recipe], pool: Pool, state: dict[str, Any], stop_after: int | None) -> bool:
    """Train through the stages; False when it left early."""
    model, recipe = run.model, run.recipe
    text = family_of(model.config).text_model(model)
    for _, parameter in tower_parameters(model):
        parameter.requires_grad_(False)
    matrices = [p for part in (text.layers, token_former(model)) for p in part.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [*text.parameters(), *token_former(model).parameters(), model.model.image_newline]
    optimizers = Optimizers(matrices, [p for p in rest if id(p) not in known], recipe.muon, recipe.adam)
    if "optimizers" in state:
        optimizers.load_state_dict(state["optimizers"])
    prompts = Prompts(run.processor, MODEL_SIDE)
    done, total = 0, sum(stage.steps for stage in recipe.stages)
    tally: dict[str, list[float]] = defaultdict(list, state.get("tally", {}))
    for number, stage in enumerate(recipe.stages):
        for step in range(stage.steps):
            done += 1
            if done <= state["step"]:
                continue
            rng = np.random.default_rng((run.seed, 2, number, step))
            rate = stage_rate(stage, step) * min(1.0, done / recipe.warmup)
            loss = _language_step(run, pool, prompts, optimizers, stage, rng, rate, tally)
            if done % LOG_EVERY == 0 or done == total:
                shown = rounded({kind: sum(v) / len(v) for kind, v in tally.items()})
                run.say({"stage": stage.name, "step": done, "loss": round(loss, 4), "accuracy": shown})
                tally.clear()
            if done % recipe.save_every == 0 or done in (total, stop_after):
                run.save("language", done, optimizers=optimizers.state_dict(), tally=dict(tally))
            if done == stop_after:
                return False
    return True


def _language_step(
    run: Training[Recipe], pool: Pool, prompts: Prompts, optimizers: Optimizers, stage: Stage, rng: np.random.Generator,
    rate: float, tally: dict[str, list[float]],
) -> float:  # fmt: skip
    samples = [
        draw_sample(
            rng, pool, questions=stage.questions, kinds=stage.kinds, things=stage.objects,
            background=stage.background, foreign=run.recipe.foreign,
        )
        for _ in range(stage.clips)
    ]  # fmt: skip
    blind = ("question", "shallow")[rng.integers(2)] if rng.random() < stage.blind else ""
    batch = pack(prompts, samples, tail=stage.tail)
    hidden = hidden_states(run.model, batch, pool.features[batch.rows].float(), blind)
    asked = batch.target >= 0
    logits, target, weight = run.model.lm_head(hidden[asked]), batch.target[asked], batch.weight[asked]
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    optimizers.step(loss, rate)
    if not blind:
        right = (logits.argmax(-1) == target)[batch.deciding[asked]].tolist()
        for question, hit in zip((q for sample in samples for q in sample.questions), right, strict=True):
            tally[question.kind].append(float(hit))
    return loss.item()


def _finish(run: Training[Recipe], out: Path, clips: Path) -> None:
    recipe = run.recipe
    kinds: list[str] = []
    card = {"trained": True, "note": NOTE, "revision": f"tabletop-1-seed-{run.seed}", "default_frames": 16}
    card |= {"kinds": kinds, "seed": run.seed, "world": "tabletop"}
    write = {"seed": run.seed, "dtype": torch.bfloat16, "sentences": corpus()}
    folder = write_checkpoint(out, FAMILY, recipe.shape, card=card, weights=run.model.state_dict(), **write)
    # Judged is what was written: weights rounded to bfloat16, loaded as any checkpoint is.
    saved = type(run.model).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    processor = Processor.from_pretrained(folder)
    for split, count in (("validation", recipe.validation_clips), ("heldout", recipe.heldout_clips)):
        seeds = [number for number in range(count) if cached_path(clips, split, number).is_file()]
        if not seeds:
            continue
        verdicts = list(judge(saved, processor, clips, split, seeds))
        if split == "validation":
            kinds += [kind for kind in ALL_KINDS if tables(verdicts, [kind])["accuracy"] >= SHIPPED_AT]
        truths = [[take.truth for take in load_takes(cached_path(clips, split, number))] for number in seeds]
        foreign = tables(judge_foreign(saved, processor, split, range(len(seeds)), truths))["accuracy"]
        run.say(
            {"event": split, "clips": len(seeds), "foreign_told_apart": foreign, "shipped_kinds": kinds}
            | {"falsely_untold": falsely_untold(processor, verdicts, kinds)}
            | {"shipped": tables(verdicts, kinds), "all": tables(verdicts)}
        )
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="decides weights, clips and order")] = 0,
    out: Annotated[Path, typer.Option(help="checkpoint folder")] = Path("runs/tiny-tabletop"),
    log: Annotated[Path, typer.Option(help="training log")] = Path("runs/train-tiny-tabletop.json"),
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint in runs/")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch")] = 0,
) -> None:
    """Train a model on rendered clips and write its checkpoint and log."""
    if threads:
        torch.set_num_threads(threads)
    rows = train(out, seed=seed, work=Path("runs") / f"tabletop-seed-{seed}", resume=resume)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    app()
