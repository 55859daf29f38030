"""The product's ShaRP against the plain reference: the same tokens for the same reasons, with the default options."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from sharp_demo.backbones.features import black_features
from sharp_demo.backbones.load import Backbone
from sharp_demo.pruning.outcome import Role, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.sharp import ShaRP
from sharp_demo.pruning.sharp.reference import Kept, sharp
from tests.pruning.prompts import Prompt, embedded, scenes, with_frames
from tests.pruning.test_regd import ADVERSARIAL

SHARES = (0.05, 0.15, 0.25, 0.5, 0.9)


def expected(prompt: Prompt, share: float) -> Kept:
    layout, model = prompt.layout, prompt.model
    positions = prompt.tokens.get("position_ids", torch.arange(prompt.length)[None])
    black = black_features(model, prompt.backbone.processor.video, layout).features
    rows, frames = layout.index.tolist(), layout.frame.tolist()
    lm = model.model.language_model
    return sharp(lm, embedded(prompt)[0].detach(), black, positions[-3:], rows, frames, share)


@dataclass(frozen=True)
class Watched(ShaRP):
    """ShaRP that keeps its selections."""

    selections: list[Selection] = field(default_factory=list)

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        selection = super().before_layer(layer, prefill)
        if selection is not None:
            self.selections.append(selection)
        return selection


def agree(prompt: Prompt, share: float) -> set[Role]:
    """Compare tokens, roles and the rows that go on; return the roles."""
    method = Watched(retention=share)
    with method(prompt.model, prompt.backbone.processor) as run, torch.no_grad():
        prompt.model(**prompt.inputs(), use_cache=True)
    told = expected(prompt, share)
    assert run.kept.tolist() == list(told)
    assert run.role.tolist() == [role for role, _ in told.values()]
    (selection,) = method.selections
    torch.testing.assert_close(selection.hidden, torch.stack([row for _, row in told.values()]), atol=2e-5, rtol=1e-4)
    return {role for role, _ in told.values()}


@pytest.mark.parametrize("share", SHARES)
def test_on_clips(share: float, tiny: Backbone) -> None:
    agree(Prompt(tiny, scenes(12)), share)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_on_videos_made_to_mislead(kind: str, tiny: Backbone) -> None:
    prompt = Prompt(tiny, scenes(12))
    layout, width = prompt.layout, prompt.features.features.shape[1]
    rng = np.random.default_rng(list(ADVERSARIAL).index(kind))
    roles: set[Role] = set()
    for share in (0.15, 0.5):
        rows = torch.from_numpy(ADVERSARIAL[kind](rng, len(layout), width).astype(np.float32))
        with with_frames(prompt, rows.view(layout.frames, -1, width)):
            roles |= agree(prompt, share)
    assert len(roles) > 1 or kind in ("noise", "orthogonal")  # nothing resembles anything there
