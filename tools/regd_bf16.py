"""Write what bfloat16 changes in RegD: python tools/regd_bf16.py docs/results/regd-bf16.md.

Three ways to compare tokens: fp32 states; bf16 states compared in fp32 (what the program does with a bf16 model); bf16
states compared in bf16 (what it does not do). 6,272 tokens of width 896, imagined clips, no model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.speed.content import Content, clip_like  # noqa: E402
from lab.tables.text import table  # noqa: E402
from sharp_demo.pruning.sharp.regd import RegDOptions, refine  # noqa: E402

FRAMES, CELLS, WIDTH = 32, 196, 896
SEEDS = 3


def spread_out(seed: int) -> Tensor:
    """One picture seen through noise of every strength: cosines of a cell lie evenly around all thresholds."""
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(CELLS, WIDTH, generator=generator).repeat(FRAMES, 1)
    share = torch.empty(len(picture), 1).uniform_(0.6, 1, generator=generator)
    return share * picture + (1 - share**2).sqrt() * torch.randn(picture.shape, generator=generator)


CLIPS = {
    "8 segments, 50 % repeated": lambda seed: clip_like(Content(8, 0.5), FRAMES, CELLS, WIDTH, seed),
    "1 segment, none repeated": lambda seed: clip_like(Content(1, 0.0), FRAMES, CELLS, WIDTH, seed),
    "1 segment, noise of every strength": spread_out,
}


def kept(rows: Tensor, registers: Tensor, scores: Tensor, segments: int) -> set[int]:
    segment = torch.arange(FRAMES).repeat_interleave(CELLS) * segments // FRAMES
    return set(refine(rows, rows, segment, segments, scores, registers, RegDOptions()).kept.tolist())


def flipped(rows: Tensor, registers: Tensor, tau: float) -> tuple[float, float]:
    """Share of tokens whose nearest register falls on the other side of `tau`: states in bf16, then all in bf16."""
    others = torch.ones(len(rows), dtype=torch.bool).index_fill_(0, registers, False)
    exact = (F.normalize(rows, dim=-1) @ F.normalize(rows[registers], dim=-1).T)[others].amax(1)
    half = rows.bfloat16().float()
    unit, unit_registers = F.normalize(half, dim=-1), F.normalize(half[registers], dim=-1)
    in_fp32 = (unit @ unit_registers.T)[others].amax(1)
    in_bf16 = (unit.bfloat16() @ unit_registers.bfloat16().T)[others].amax(1).float()
    truth = exact > tau
    return tuple(float(((other > tau) != truth).float().mean()) for other in (in_fp32, in_bf16))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    rows = []
    for title, draw in CLIPS.items():
        segments = int(title.split()[0])
        for retention in (0.235, 0.14):
            changed, counts, flips = 0, 0, torch.zeros(3, 2, dtype=torch.float64)
            for seed in range(SEEDS):
                states = draw(seed)
                scores = torch.rand(len(states), generator=torch.Generator().manual_seed(seed))
                budget = round(retention * len(states))
                registers = scores.topk(budget).indices.sort().values
                full = kept(states, registers, scores, segments)
                changed += len(full - kept(states.bfloat16(), registers, scores, segments))
                counts += budget
                few = registers[::4]
                flips += torch.tensor([flipped(states, few, tau) for tau in (0.7, 0.8, 0.4)], dtype=torch.float64)
            shares = [f"{half / SEEDS:.3%} / {both / SEEDS:.3%}" for half, both in flips.tolist()]
            rows.append([title, f"{retention:.1%}", f"{changed} of {counts} ({changed / counts:.2%})", *shares])
    header = ["clip", "R", "kept tokens that change", "nearest at 0.7", "nearest at 0.8", "nearest at 0.4"]
    text = (
        "# What bfloat16 may flip in RegD\n\n"
        f"Made by `python tools/regd_bf16.py`: {FRAMES * CELLS} tokens of width {WIDTH}, {SEEDS} seeds. *Kept tokens "
        "that change*: members of the kept set with fp32 states that are not in the set with states rounded to bf16, "
        "both compared in fp32, as the program does. The other columns: share of the tokens whose nearest register (of "
        "every fourth one) falls on the other side of that threshold than with fp32 states: states in bf16 compared in "
        "fp32 / states in bf16 compared in bf16.\n\n" + table(header, rows) + "\n"
    )
    out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
