"""What each step of SegM and RegD did with every token, for explanations. Untimed: it runs RegD once more, in steps."""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_demo.pruning.sharp.regd import RegDOptions, begin, deduplicate, fill, prefilter, repair, run_leaders


def trace_regd(
    hidden: Tensor,
    features: Tensor,
    segment: Tensor,
    segments: int,
    scores: Tensor,
    registers: Tensor,
    options: RegDOptions,
) -> dict[str, Tensor]:
    """Return what `refine` does with the same arguments, step by step, as indices of the v tokens.

    "prefiltered": tokens that resemble a register of their segment. "absorbed": [m, 2] registers that were
    deduplicated, each with its pivot. "filled": tokens that clusters put in the free places. "repaired": tokens that
    their scores put in the places still free.
    """
    walk = hidden.device.type == "cpu"
    draft = begin(hidden, features)
    pool = prefilter(draft, registers, segment, options, walk)
    has_register = torch.zeros(segments, dtype=torch.bool, device=segment.device)
    has_register[segment[registers]] = True
    gone = has_register[segment]
    gone[registers] = False
    gone[pool] = False
    where = segment[registers]
    leader = run_leaders(draft.features[registers], where, options.tau_merge, options.dedup_reference, walk=walk)
    pivot = registers[leader]
    absorbed = torch.stack((registers, pivot), 1)[registers != pivot]
    deduplicate(draft, registers, segment, options, walk)
    before = draft.role >= 0
    fill(draft, registers, pool, segment, segments, options, walk)
    filled = (draft.role >= 0) & ~before
    if options.strict_budget:
        repair(draft, scores, len(registers))
    repaired = (draft.role >= 0) & ~before & ~filled
    return {
        "prefiltered": gone.nonzero().squeeze(1),
        "absorbed": absorbed,
        "filled": filled.nonzero().squeeze(1),
        "repaired": repaired.nonzero().squeeze(1),
    }
