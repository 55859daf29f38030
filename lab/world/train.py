"""Train an embedded model: `python -m lab.world.train --backbone FAMILY`.

Tower alone, its features cached, the tokens formed of them, then the language model from few tokens to all. Every
step draws its data from (seed, stage, step), so a resumed run equals an uninterrupted one bit for bit on the same
machine and thread count.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import typer
from torch import Tensor, nn

from lab.world.generate import clip_scenes
from lab.world.model_card import write_card
from lab.world.packing import Pool, Prompts, draw_sample, pack
from lab.world.questions import KINDS
from lab.world.recipe import Recipe, Stage, corpus
from lab.world.score import hidden_states, judge, tables
from lab.world.vision import (
    CELLS,
    Heads,
    build_pool,
    patch_features,
    per_interval,
    token_former,
    tower_batch,
    tower_parameters,
    visual_tokens,
)
from sharp_demo.backbones.families import FAMILIES, family_named, family_of
from sharp_demo.backbones.processor import Processor
from sharp_demo.backbones.tiny import write_checkpoint

NOTE = (
    "Tiny model trained on synthetic clips: it answers only questions about such clips, real footage needs a real "
    "model, and the ranking of methods on it says nothing about 7B models."
)
SHIPPED_AT = 0.9  # exact match on validation clips from which a kind of question is shipped
LOG_EVERY = 25
TOKENS = 1024  # visual tokens of a batch for the projector or merger


class Optimizers:
    """Muon on the matrices, AdamW on everything else."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], muon: float, adam: float) -> None:
        self.parameters = [*matrices, *others]
        self.both: list[Any] = [
            torch.optim.Muon(matrices, lr=muon),
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = (muon, adam)

    def step(self, loss: Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, base in zip(self.both, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[Any]:
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states: list[Any]) -> None:
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass
class Training(Generic[AnyRecipe]):
    """One run: the model, where it stands, and its log."""

    family: str
    seed: int
    recipe: AnyRecipe
    work: Path
    device: torch.device
    model: Any = None
    processor: Any = None
    log: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, row: dict[str, Any]) -> None:
        row = row | {"seconds": round(time.monotonic() - self.started)}
        self.log.append(row)
        print(json.dumps(row), flush=True)

    def save(self, phase: str, step: int, **extra: Any) -> None:
        state = {"phase": phase, "step": step, "log": self.log, "model": self.model.state_dict()} | extra
        target = self.work / "checkpoint.pt"
        torch.save(state, target.with_suffix(".tmp"))
        os.replace(target.with_suffix(".tmp"), target)

    def load(self) -> dict[str, Any]:
        state = torch.load(self.work / "checkpoint.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.log = state["log"]
        return state


def train(
    family: str,
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    work: Path,
    resume: bool = False,
    device: str = "cpu",
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Train, write the checkpoint with its cards into `out`, and return the log.

    Parameters
    ----------
    family : name of one of `FAMILIES`.
    work : folder for the run's checkpoints and its feature pool.
    resume : go on from `work` if it holds a checkpoint.
    stop_after : leave after this many language-model steps, as an interrupted run would.
    """
    recipe = recipe or Recipe()
    work.mkdir(parents=True, exist_ok=True)
    run = Training(family, seed, recipe, work, torch.device(device))
    blank = write_checkpoint(work / "blank", family, recipe.shape, seed=seed, sentences=corpus(recipe.corpus_clips))
    model_class = getattr(transformers, family_named(family).model_class)
    run.model = model_class.from_pretrained(blank, dtype=torch.float32, attn_implementation="sdpa").to(run.device)
    run.processor = Processor.from_pretrained(blank)
    state: dict[str, Any] = {"phase": "tower", "step": 0}
    if resume and (work / "checkpoint.pt").is_file():
        state = run.load()
        run.say({"event": "resume", "phase": state["phase"], "step": state["step"], **versions()})
    else:
        (work / "pool.pt").unlink(missing_ok=True)  # of another tower
        run.say({"event": "start", "family": family, "seed": seed, "device": device, **versions()})
    if state["phase"] == "tower":
        _train_tower(run, state)
        state = {"phase": "tokens", "step": 0}
    pool = _pool(run)
    if state["phase"] == "tokens":
        run.say({"event": "pool", "intervals": len(pool.features) // CELLS})
        _train_tokens(run, pool)
        state = {"phase": "language", "step": 0}
    if not _train_language(run, pool, state, stop_after):
        return run.log
    _finish(run, out)
    return run.log


def _train_tower(run: Training, state: dict[str, Any]) -> None:
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
    for step in range(state["step"], recipe.tower_steps):
        rng = np.random.default_rng((run.seed, 1, step))
        frames, truth = tower_batch(rng, per_interval(model.config), recipe.tower_images)
        patches = patch_features(model, run.processor.video, frames)
        loss, accuracy = heads(patches, torch.from_numpy(truth).to(run.device))
        optimizers.step(loss, falling_rate(step, recipe.tower_steps, recipe.warmup))
        if (step + 1) % LOG_EVERY == 0:
            run.say({"stage": "tower", "step": step + 1, "loss": round(loss.item(), 4), "accuracy": rounded(accuracy)})
        if (step + 1) % (4 * recipe.save_every) == 0:
            run.save("tower", step + 1, heads=heads.state_dict(), optimizers=optimizers.state_dict())
    run.save("tokens", 0)


def falling_rate(step: int, steps: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup, 0.02 + 2.5 * (steps - step) / steps)


def _new_heads(run: Training, width: int) -> Heads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return Heads(width, direction=per_interval(run.model.config) > 1).to(run.device)


def _train_tokens(run: Training, pool: Pool) -> None:
    """Teach the projector or merger to keep in a visual token what the tower saw.

    From random weights the language model finds objects by colour and shape but does not learn to say them.
    """
    former = list(token_former(run.model).parameters())
    heads = _new_heads(run, run.recipe.shape.width)
    optimizers = Optimizers(
        [p for p in former if p.ndim == 2],
        [p for p in former if p.ndim != 2] + list(heads.parameters()),
        run.recipe.tower_muon,
        run.recipe.adam,
    )
    truth = torch.from_numpy(pool.labels())
    shown, empty = ((truth[:, 1] > 0) == wanted for wanted in (True, False))
    groups = ((shown.nonzero()[:, 0], TOKENS * 3 // 4), (empty.nonzero()[:, 0], TOKENS // 4))
    for step in range(run.recipe.token_steps):
        rng = np.random.default_rng((run.seed, 3, step))
        rows = torch.cat([group[rng.integers(len(group), size=size)] for group, size in groups])
        tokens = visual_tokens(run.model, pool.features[rows].to(run.device).float())
        loss, accuracy = heads(tokens[None, :, None], truth[rows][None].to(run.device))
        optimizers.step(loss, falling_rate(step, run.recipe.token_steps, 1))
        if (step + 1) % LOG_EVERY == 0:
            run.say({"stage": "tokens", "step": step + 1, "loss": round(loss.item(), 4), "accuracy": rounded(accuracy)})
    run.save("language", 0)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(values.items())}


def _pool(run: Training) -> Pool:
    clips = [clip_scenes(seed, "train") for seed in range(run.recipe.pool_clips)]
    cached = run.work / "pool.pt"
    if cached.is_file():
        return Pool(clips, torch.load(cached, weights_only=True))
    run.model.eval()
    features = build_pool(run.model, run.processor.video, clips, run.seed, lambda text: print(text, flush=True))
    torch.save(features, cached.with_suffix(".tmp"))
    os.replace(cached.with_suffix(".tmp"), cached)
    return Pool(clips, features)


def _train_language(run: Training, pool: Pool, state: dict[str, Any], stop_after: int | None) -> bool:
    """Train through the stages; False when it left early."""
    model, recipe = run.model, run.recipe
    text = family_of(model.config).text_model(model)
    for _, parameter in tower_parameters(model):
        parameter.requires_grad_(False)
    matrices = [p for part in (text.layers, token_former(model)) for p in part.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [*text.parameters(), *token_former(model).parameters()]
    if hasattr(model.model, "image_newline"):
        rest.append(model.model.image_newline)
    others = [p for p in rest if id(p) not in known]
    optimizers = Optimizers(matrices, others, recipe.muon, recipe.adam)
    if "optimizers" in state:
        optimizers.load_state_dict(state["optimizers"])
    prompts = Prompts(run.processor)
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
                # The tally is saved too: a resumed run must log what an uninterrupted one logs.
                run.save("language", done, optimizers=optimizers.state_dict(), tally=dict(tally))
            if done == stop_after:
                return False
    return True


def stage_rate(stage: Stage, step: int) -> float:
    first, last = stage.rate
    return first + (last - first) * step / max(1, stage.steps - 1)


def _language_step(
    run: Training,
    pool: Pool,
    prompts: Prompts,
    optimizers: Optimizers,
    stage: Stage,
    rng: np.random.Generator,
    rate: float,
    tally: dict[str, list[float]],
) -> float:
    samples = [
        draw_sample(
            rng, pool, questions=stage.questions, kinds=stage.kinds, objects=stage.objects, background=stage.background
        )
        for _ in range(stage.clips)
    ]
    blind = ("question", "shallow")[rng.integers(2)] if rng.random() < stage.blind else ""
    batch = pack(prompts, samples, tail=stage.tail)
    patches = pool.features[batch.rows].to(run.device).float()
    batch = batch.to(run.device)
    hidden = hidden_states(run.model, batch, patches, blind)
    asked = batch.target >= 0
    logits, target, weight = run.model.lm_head(hidden[asked]), batch.target[asked], batch.weight[asked]
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    optimizers.step(loss, rate)
    if not blind:
        right = (logits.argmax(-1) == target)[batch.deciding[asked]].tolist()
        for question, hit in zip((q for sample in samples for q in sample.questions), right, strict=True):
            tally[question.kind].append(float(hit))
    return loss.item()


def _finish(run: Training, out: Path) -> None:
    recipe = run.recipe
    card = {"trained": True, "note": NOTE, "revision": f"clips-1-seed-{run.seed}"}
    card |= {"default_frames": 16 * per_interval(run.model.config), "kinds": [], "seed": run.seed}
    write = {"seed": run.seed, "dtype": torch.bfloat16, "sentences": corpus(recipe.corpus_clips)}
    weights = {name: value.cpu() for name, value in run.model.state_dict().items()}
    folder = write_checkpoint(out, run.family, recipe.shape, card=card, weights=weights, **write)
    # Judged is what was written: weights rounded to bfloat16, loaded as any checkpoint is.
    saved = (
        type(run.model).from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval().to(run.device)
    )
    processor = Processor.from_pretrained(folder)
    validation = list(judge(saved, processor, "validation", range(recipe.validation_clips)))
    kinds = [kind for kind in KINDS if tables(validation, [kind])["accuracy"] >= SHIPPED_AT]
    heldout = list(judge(saved, processor, "heldout", range(recipe.heldout_clips)))
    card["kinds"] = kinds
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    run.say({"event": "validation", "shipped_kinds": kinds, "shipped": tables(validation, kinds), **tables(validation)})
    run.say({"event": "heldout", "shipped": tables(heldout, kinds), "all": tables(heldout)})
    parameters = sum(p.numel() for p in saved.parameters())
    step = per_interval(run.model.config)
    write_card(folder, run.family, recipe, run.log, parameters=parameters, frames_per_token=step)


def versions() -> dict[str, Any]:
    """What the numbers depend on apart from the seed."""
    try:
        asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        commit = asked.stdout.strip()
    except OSError:  # no git here, as in a container
        commit = ""
    return {
        "commit": commit,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }


app = typer.Typer(add_completion=False)


@app.command()
def main(
    backbone: Annotated[str, typer.Option(help=f"one of {', '.join(family.name for family in FAMILIES)}")],
    seed: Annotated[int, typer.Option(help="decides weights, clips and order")] = 0,
    out: Annotated[Path | None, typer.Option(help="checkpoint folder; default assets/models/tiny-BACKBONE")] = None,
    log: Annotated[
        Path | None, typer.Option(help="training log; default docs/results/train-tiny-BACKBONE.json")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last checkpoint in runs/")] = False,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 leaves it to torch")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Train an embedded model on synthetic clips and write its checkpoint, model card and log."""
    if backbone not in (names := [family.name for family in FAMILIES]):
        raise typer.BadParameter(f"unknown backbone {backbone!r}; it must be one of {', '.join(names)}")
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    name = f"tiny-{backbone}"
    rows = train(
        backbone,
        out or Path("assets/models") / name,
        seed=seed,
        work=Path("runs") / f"{name}-seed-{seed}",
        resume=resume,
        device=device,
    )
    log = log or Path("docs/results") / f"train-{name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    app()
