"""Every registered method on every model family at several retentions: what must hold whatever the method does.

The lists are read from the registries, so a method or a family that joins is covered without a line here. A sample of
the cases, always the same, runs with the quick tests; the others are in the full volume.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from torch import Tensor

from sharp_demo.backbones import families
from sharp_demo.backbones.load import Backbone
from sharp_demo.cli import main
from sharp_demo.cost import shape_named
from sharp_demo.engine import Engine
from sharp_demo.engine.generation import decode_step, prefill
from sharp_demo.errors import MethodError, UnsupportedError
from sharp_demo.page.build import build_ui
from sharp_demo.pruning import attention, registry
from sharp_demo.pruning.layers import CacheNote
from sharp_demo.pruning.method import Method, SingleStage, knob, top_k
from sharp_demo.pruning.outcome import Role, Run, Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods, make_method
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.settings import Settings
from tests.pruning.prompts import Prompt, decoder, greedy, lowest, scenes
from tests.video.clips import write_clip

RETENTIONS = (1.0, 0.6, 0.3, 0.05)
CHECKS = ("whole", "counts", "repeats", "interleaved", "refusals", "cost")  # a method meets a family in every second

Case = tuple[str, str, float]


def backbones() -> list[str]:
    return [family.name for family in families.FAMILIES]


def matrix(check: str, retentions: tuple[float, ...] = RETENTIONS) -> tuple[list[Case], set[Case]]:
    """All cases of a check, and those of the quick sample: half of the families, another half for the next method."""
    cases = [(name, backbone, share) for name, backbone, share in product(list_methods(), backbones(), retentions)]
    sample: set[Case] = set()
    for (row, name), (column, backbone) in product(enumerate(list_methods()), enumerate(backbones())):
        if (row + column) % 2 == CHECKS.index(check) % 2:
            own = [case for case in cases if case[:2] == (name, backbone)]
            sample.add(min(own, key=lambda case: zlib.crc32(f"{check} {case}".encode())))
    return cases, sample


def over_all(check: str, retentions: tuple[float, ...] = RETENTIONS) -> Any:
    """Parametrise a test over the matrix; what is not in the sample is marked `full`."""
    cases, sample = matrix(check, retentions)
    params = [
        pytest.param(*case, id="-".join(map(str, case)), marks=() if case in sample else pytest.mark.full)
        for case in cases
    ]
    return pytest.mark.parametrize(("name", "backbone", "retention"), params)


@pytest.fixture(scope="module")
def prompts(tiny_of: Callable[[str], Backbone]) -> dict[str, Prompt]:
    return {name: Prompt(tiny_of(name), scenes(10)) for name in backbones()}


@pytest.fixture(scope="module")
def vanilla(prompts: dict[str, Prompt]) -> dict[str, tuple[list[int], Tensor]]:
    return {name: greedy(prompt, steps=3)[:2] for name, prompt in prompts.items()}


def possible(name: str, retention: float, prompt: Prompt) -> Method:
    """The method at `retention`, or just above its limit where that is higher; below, it names it in one line."""
    method, limit = make_method(name, retention), lowest(name, prompt.layout)
    if retention >= limit:
        return method
    with (
        method(prompt.model, prompt.backbone.processor),
        torch.no_grad(),
        pytest.raises(MethodError, match=rf"^{re.escape(name)}: [^\n]*\d[^\n]*$"),
    ):
        prompt.model(**prompt.inputs(), use_cache=True)
    return make_method(name, 1.05 * limit)


@torch.no_grad()
def run(method: Method, prompt: Prompt, cache: BiasCache | None = None) -> tuple[Run, Tensor]:
    """What a method did, and the logits of three tokens and of a second turn."""
    with method(prompt.model, prompt.backbone.processor, cache) as record:
        _, logits, _ = greedy(prompt, steps=3)
    return record, logits


def same(one: tuple[Run, Tensor], other: tuple[Run, Tensor]) -> None:
    for field in ("kept", "role", "merged_into"):
        assert torch.equal(getattr(one[0], field), getattr(other[0], field)), field
    assert one[0].visual_per_layer == other[0].visual_per_layer
    assert torch.equal(one[1], other[1])


# -- the checks --------------------------------------------------------------------------------------------------


def check_whole(name: str, prompt: Prompt, vanilla: tuple[list[int], Tensor]) -> None:
    """Retention 1 is vanilla bit for bit, and says that nothing was dropped."""
    record, logits = run(make_method(name, 1.0), prompt)
    n = len(prompt.layout)
    assert torch.equal(logits, vanilla[1])
    assert record.kept.tolist() == list(range(n))
    assert record.visual_per_layer == [n] * len(decoder(prompt.model).layers)


def positions_of(prompt: Prompt, rotary: tuple[Tensor, Tensor]) -> list[int]:
    """Rows of the original prompt whose positions a layer's cos and sin [1, m, head_dim] belong to."""
    lm = decoder(prompt.model)
    whole = prompt.tokens.get("position_ids", torch.arange(prompt.length)[None])
    table = torch.cat(
        lm.rotary_emb(torch.zeros(1), families.family_of(prompt.model.config).rotary_positions(whole)), -1
    )[0]
    distance = torch.cdist(torch.cat(rotary, -1)[0], table, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.min(-1)
    assert float(nearest.values.max()) < 1e-6
    return nearest.indices.tolist()


@torch.no_grad()
def check_counts(name: str, prompt: Prompt, retention: float) -> None:
    """Budgets, order, positions and cache lengths, and what the run says about them."""
    method = possible(name, retention, prompt)
    layers, n = decoder(prompt.model).layers, len(prompt.layout)
    text = prompt.length - n
    seen: list[tuple[Tensor, Tensor]] = []

    def before_layer(prefill: Prefill, layer: int) -> None:
        original(prefill, layer)
        seen.append(prefill.rotary)

    original = Prefill.before_layer
    with pytest.MonkeyPatch.context() as patch, method(prompt.model, prompt.backbone.processor) as record:
        patch.setattr(Prefill, "before_layer", before_layer)
        logits, cache, _ = prefill(prompt.model, prompt.inputs())
    counts = record.visual_per_layer
    assert not logits.isnan().any()
    assert len(counts) == len(layers)
    assert counts == sorted(counts, reverse=True)
    assert 1 <= len(record.kept) <= counts[-1] <= counts[0] <= n
    if not method.adaptive:
        assert counts == method.visual_per_layer(len(layers), n, prompt.layout.frames)
        assert len(record.kept) == counts[-1]
    kept, merged = record.kept.tolist(), record.merged_into
    assert all(a < b for a, b in pairwise(kept))
    assert len(record.role) == len(kept)
    assert set(record.role.tolist()) <= {int(role) for role in Role}
    assert set(merged[merged >= 0].tolist()) <= set(kept)
    clears = any(type(part).after_prefill is not Method.after_prefill for part in method.parts)
    for length, visual in zip((layer.get_seq_length() for layer in cache.layers), counts, strict=True):
        assert length == visual + text or (clears and length == text)
    assert len(seen) == (len(layers) if method.active else 0)
    visual, before, renumbered = set(prompt.layout.index.tolist()), list(range(prompt.length)), False
    start, behind = min(visual), prompt.length - 1 - max(visual)
    for rotary, count in zip(seen, counts, strict=False):
        rows = positions_of(prompt, rotary)
        assert len(rows) - text == count
        assert all(a < b for a, b in pairwise(rows))
        if rows == list(range(len(rows))) and len(rows) < len(before):
            renumbered = True
        else:  # what is left of the layer before, with all of its text
            assert set(rows) <= set(before)
            assert rows[:start] == before[:start]
            assert rows[-behind:] == before[-behind:]
            assert renumbered or set(range(prompt.length)) - visual <= set(rows)  # text between frames too
        before = rows
    renumbers = any(part.active and getattr(part, "reindex_positions", False) for part in method.parts)
    # Where something went before the LLM; three axes are never renumbered.
    assert renumbered == (renumbers and counts[0] < n and "position_ids" not in prompt.tokens)
    if seen and len(kept) == counts[-1] and not renumbered:
        assert sorted(visual & set(before)) == prompt.layout.index[record.kept].tolist()


def hooks_of(model: torch.nn.Module) -> list[int]:
    """Every hook on every module of a model (transformers keeps some of its own)."""
    return [
        key
        for module in model.modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for key in hooks
    ]


def check_repeats(name: str, prompt: Prompt, retention: float, vanilla: tuple[list[int], Tensor]) -> None:
    """Twice is the same, and afterwards the model is as it was."""
    model = prompt.model
    before = hooks_of(model)
    method = possible(name, retention, prompt)
    same(run(method, prompt), run(method, prompt))
    assert "forward" not in vars(decoder(model))
    assert "_validate_generation_mode" not in vars(model)
    assert hooks_of(model) == before
    assert torch.equal(greedy(prompt, steps=3)[1], vanilla[1])


@torch.no_grad()
def check_interleaved(name: str, prompt: Prompt, retention: float) -> None:
    """With another method in between, on one cache of biases, and between a prefill and its decoding."""
    names = list_methods()
    others = (possible(names[(names.index(name) + step) % len(names)], 0.6, prompt) for step in range(1, len(names)))
    other = next(one for one in others if one.active)
    method, cache = possible(name, retention, prompt), BiasCache()
    first, second = run(method, prompt, cache), run(other, prompt, cache)
    same(first, run(method, prompt, cache))
    same(second, run(other, prompt, cache))
    processor = prompt.backbone.processor
    with method(prompt.model, processor, cache):
        logits, kv, positions = prefill(prompt.model, prompt.inputs())
    run(other, prompt, cache)
    with method(prompt.model, processor, cache):
        after = decode_step(prompt.model, int(logits.argmax()), kv, positions + 1)
    assert torch.equal(torch.stack((logits, after)), first[1][:2])


@torch.no_grad()
def check_refusals(name: str, prompt: Prompt, retention: float) -> None:
    """Padding, and prompts that differ, are refused in one line that says what is needed."""
    method = possible(name, retention, prompt)
    if not method.active:
        return
    inputs = prompt.inputs()
    ids = inputs["input_ids"]
    padded = torch.ones_like(ids)
    padded[0, 0] = 0
    other = ids.clone()
    other[0, -1] -= 1
    with method(prompt.model, prompt.backbone.processor):
        for changes, message in (
            ({"attention_mask": padded}, r"needs an unpadded prompt[^\n]*"),
            ({"input_ids": torch.cat((ids, other))}, r"needs the same prompt in every row[^\n]*"),
        ):
            with pytest.raises(UnsupportedError, match=message):
                prompt.model(**{**inputs, **changes}, use_cache=True)
        prompt.model(**inputs, use_cache=True)


@torch.no_grad()
def check_cost(name: str, prompt: Prompt, retention: float) -> None:
    """A method that reads attention in the LLM says what that costs."""
    method = possible(name, retention, prompt)
    calls: list[str] = []

    def spied(owner: object, reader: str) -> None:
        original = getattr(owner, reader)

        def call(*args: object) -> Tensor:
            calls.append(reader)
            return original(*args)

        patch.setattr(owner, reader, call)

    with pytest.MonkeyPatch.context() as patch, method(prompt.model, prompt.backbone.processor):
        for reader in ("logits_of_last_layer", "logits_of_next_layer", "unrotated_logits"):
            spied(Prefill, reader)
        spied(attention, "last_query_logits")  # FrameFusion asks it directly
        prefill(prompt.model, prompt.inputs())
    shape = replace(shape_named("llava-onevision-7b"), layers=len(decoder(prompt.model).layers))
    told = method.overhead_macs(shape, len(prompt.layout), frames=prompt.layout.frames)
    assert not calls or told.get("scores", 0) > 0, f"{name} reads {calls[0]} and counts no scores"


# -- the matrix --------------------------------------------------------------------------------------------------


@over_all("whole", (1.0,))
def test_retention_one_is_vanilla(name: str, backbone: str, retention: float, prompts: Any, vanilla: Any) -> None:
    check_whole(name, prompts[backbone], vanilla[backbone])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evs", {}),
        ("divprune", {}),
        ("dycoke", {}),
        ("vidcom2", {}),
        ("cdpruner", {}),
        ("sharpv", {"memory_threshold": -1}),
        ("framefusion", {}),
        ("visionzip", {}),
        ("holitom", {"tau": 1.0, "drop": 0.0}),
    ],
)
@pytest.mark.parametrize("backbone", backbones())
def test_a_method_that_keeps_everything_is_vanilla(
    name: str, options: dict, backbone: str, prompts: Any, vanilla: Any
) -> None:
    """Not by stepping aside: it runs, chooses all tokens, and changes none."""
    prompt = prompts[backbone]
    method = make_method(name, 1 - 1e-9, options)
    record, logits = run(method, prompt)
    assert method.active
    assert record.stages
    assert record.kept.tolist() == list(range(len(prompt.layout)))
    assert torch.equal(logits, vanilla[backbone][1])


@over_all("counts")
def test_counts_order_positions_and_caches(name: str, backbone: str, retention: float, prompts: Any) -> None:
    check_counts(name, prompts[backbone], retention)


@over_all("repeats")
def test_twice_is_the_same_and_undone(name: str, backbone: str, retention: float, prompts: Any, vanilla: Any) -> None:
    check_repeats(name, prompts[backbone], retention, vanilla[backbone])


@over_all("interleaved")
def test_methods_do_not_disturb_each_other(name: str, backbone: str, retention: float, prompts: Any) -> None:
    check_interleaved(name, prompts[backbone], retention)


@over_all("cost", (0.3,))
def test_no_method_reads_attention_for_free(name: str, backbone: str, retention: float, prompts: Any) -> None:
    check_cost(name, prompts[backbone], retention)


@over_all("refusals")
def test_batches_and_padding_are_refused(name: str, backbone: str, retention: float, prompts: Any) -> None:
    check_refusals(name, prompts[backbone], retention)


def test_in_the_sample_every_method_meets_every_family() -> None:
    every = set(product(list_methods(), backbones()))
    for one, next_one in pairwise(CHECKS):
        assert {case[:2] for case in matrix(one)[1] | matrix(next_one)[1]} == every
    assert {case[2] for case in matrix("counts")[1]} == set(RETENTIONS)
    assert matrix("counts") == matrix("counts")


# -- a method of one's own ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loudest(SingleStage):
    """Keeps the tokens whose states are longest."""

    name = "loudest"
    title = "Loudest"
    summary = "Norm of the state; drops before layer K=1."
    layer: int = knob(1, "K: tokens are dropped before decoder layer K", low=0)

    def select(self, prefill: Prefill, k: int) -> Selection:
        return Selection(top_k(prefill.hidden[0, prefill.rows].float().norm(dim=-1), k))


@dataclass(frozen=True)
class Free(SingleStage):
    """Reads attention, and says that it costs nothing."""

    name = "free"
    title = "Free"

    def select(self, prefill: Prefill, k: int) -> Selection:
        return Selection(top_k(prefill.logits_of_last_layer(self.layer - 1).mean(0)[prefill.rows], k))


def test_a_method_that_hides_its_cost_is_found(prompts: dict[str, Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, Free))
    with pytest.raises(AssertionError, match="free reads logits_of_last_layer and counts no scores"):
        check_cost("free", prompts["llava-onevision"], 0.3)


def test_a_new_method_is_everywhere(
    prompts: dict[str, Prompt],
    vanilla: dict[str, tuple[list[int], Tensor]],
    tiny_llava_folder: Path,
    cpu_settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Registered, it is in the matrix, the menu and the command line, and does there what it says."""
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, Loudest))
    cases, sample = matrix("counts")
    assert len([case for case in cases if case[0] == "loudest"]) == len(backbones()) * len(RETENTIONS)
    assert "loudest" in {case[0] for case in sample}
    for backbone, prompt in prompts.items():
        check_whole("loudest", prompt, vanilla[backbone])
        check_counts("loudest", prompt, 0.3)
        check_repeats("loudest", prompt, 0.3, vanilla[backbone])
        check_interleaved("loudest", prompt, 0.3)
        check_refusals("loudest", prompt, 0.3)

    settings = cpu_settings.model_copy(update={"model": str(tiny_llava_folder)})
    page = build_ui(Engine(settings), settings)
    menus = [block for block in page.blocks.values() if isinstance(block, gr.CheckboxGroup)]
    (menu,) = (menu for menu in menus if menu.elem_id == "methods")
    assert ("Loudest", "loudest") in menu.choices
    notes = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    assert any("Loudest" in note for note in notes)

    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    assert "loudest: Loudest\n    prunes inside the LLM; does not see the question\n    Norm of the state;" in listed
    assert re.findall(r"^(\S+):", listed, re.MULTILINE) == list_methods()
    assert main(["flops", "--method", "loudest", "--option", "frames=10", "--tokens", "1000"]) == 0
    assert "1 x 1000, 27 x 200" in capsys.readouterr().out

    assert main(["flops", "--method", "loudest", "--retention", "0.25", "--tokens", "1000"]) == 0
    assert "1 x 1000, 27 x 250" in capsys.readouterr().out
    clip, out = write_clip(tmp_path / "clip.mp4"), tmp_path / "loudest.json"
    short = ["--model", str(tiny_llava_folder), "--frames", "2", "--max-new-tokens", "1", "--json", str(out)]
    assert main(["compare", str(clip), "What is it?", "--methods", "loudest", "--set", "loudest.layer=2", *short]) == 0
    (result,) = json.loads(out.read_text())["results"]
    assert (result["method"], result["config"]["layer"]) == ("loudest", 2)
    assert result["visual_per_layer"] == [18, 18, 4, 4]


def test_names_with_a_plus_work_on_the_command_line_and_in_files(
    tiny_llava_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = [name for name in list_methods() if "+" in name]
    assert names
    clip = write_clip(tmp_path / "clip.mp4")
    for name in names:
        out, page = tmp_path / f"{name}.json", tmp_path / f"{name}.html"
        short = ["--model", str(tiny_llava_folder), "--frames", "4", "--max-new-tokens", "1", "--retention", "0.4"]
        files = ["--json", str(out), "--html", str(page)]
        command = ["compare", str(clip), "What is it?", "--methods", f"vanilla,{name}", "--set", f"{name}.penalty=0.3"]
        assert main([*command, *short, *files]) == 0
        document = json.loads(out.read_text())
        assert [result["method"] for result in document["results"]] == ["vanilla", name]
        assert document["results"][1]["config"]["penalty"] == 0.3
        assert document["results"][1]["label"] in capsys.readouterr().out
        assert name in page.read_text()


@pytest.mark.parametrize(
    "name", [cls.name for cls in registry.METHODS if "reindex_positions" in cls.__dataclass_fields__]
)
def test_positions_are_numbered_anew_only_where_asked(name: str, tiny_llava: Backbone) -> None:
    prompt = Prompt(tiny_llava)
    for reindex in (True, False):
        method = make_method(name, 0.5, {"reindex_positions": reindex})
        with method(prompt.model, tiny_llava.processor):
            _, _, cache = greedy(prompt, steps=1)
        assert bool(CacheNote.of(cache).renumbered) == reindex
