"""Shared computation changes no answer: every method against its own plain run, logits, kept tokens and reply."""

import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from lab.accuracy.asking import SLACK_TOKENS, Asked, Film
from lab.accuracy.evaluate import Plan, choose_clips, lay_out
from lab.accuracy.variants import ABLATION, CORE, Subject, Variant, variant
from lab.world.records import Question, SyntheticClip
from sharp_demo.backbones.features import VideoFeatures, encode_video, model_inputs
from sharp_demo.backbones.load import Backbone, load
from sharp_demo.backbones.view import TowerMerging
from sharp_demo.engine.generation import decode_step, end_tokens, prefill
from sharp_demo.pruning.fastv import FastV
from sharp_demo.pruning.method import Method
from sharp_demo.pruning.outcome import Selection
from sharp_demo.pruning.prefill import Prefill
from sharp_demo.pruning.registry import list_methods
from sharp_demo.pruning.sharp.bias import BiasCache
from sharp_demo.pruning.tome import ToMe
from sharp_demo.pruning.vanilla import Vanilla
from sharp_demo.settings import Settings

TOKENS = 6


def plainly(backbone: Backbone, clip: SyntheticClip, question: str, method: Method):
    """First logits, kept tokens and greedy reply of the engine's own prefill and decode step."""
    features = encode_video(backbone.model, backbone.processor.video.pixels(clip.frames), signals=True)
    return plainly_on(backbone, features, clip, question, method, BiasCache(), TOKENS)


@torch.no_grad()
def plainly_on(
    backbone: Backbone,
    features: VideoFeatures,
    clip: SyntheticClip,
    question: str,
    method: Method,
    bias_cache: BiasCache,
    most: int,
):
    """The same on features that were made before."""
    model, processor = backbone.model, backbone.processor
    grid = processor.video.grid(*clip.frames.shape[:3])
    prompt = processor.prompt(question, frames=len(clip.frames), grid=grid)
    ends = end_tokens(model, processor.tokenizer)
    with method(model, processor, bias_cache) as run:
        logits, cache, positions = prefill(model, model_inputs(prompt, features))
        first, kept, ids = logits, run.kept.tolist(), []
        while (token := int(logits.argmax())) not in ends and len(ids) < most:
            ids.append(token)
            positions = positions + 1
            logits = decode_step(model, token, cache, positions)
    return first, kept, processor.decode(ids)


VARIANTS = {one.name: one for one in (*CORE, *ABLATION, *map(variant, list_methods()))}


@pytest.mark.parametrize("chosen", VARIANTS.values(), ids=VARIANTS.keys())
def test_equals_the_plain_run(backbone: Backbone, clip: SyntheticClip, film: Film, chosen: Variant) -> None:
    question = clip.questions[0]
    asked = Asked(film, question.text)
    knowledge = Subject(clip, question).knowledge(chosen, asked.layout)
    least = chosen.build(1.0).least_retention(len(asked.lm.layers), asked.layout.frames)
    for retention in (0.3, 0.05):
        method = replace(chosen.build(max(retention, least)), **knowledge)
        logits, _, run = asked.prefill(method)
        first, kept, reply = plainly(backbone, clip, question.text, method)
        assert run.kept.tolist() == kept
        torch.testing.assert_close(logits, first, rtol=1e-4, atol=1e-4)
        assert asked.reply(method, TOKENS) == reply


def test_a_second_question_does_not_see_the_first(backbone: Backbone, clip: SyntheticClip, film: Film) -> None:
    for question in clip.questions[:3]:
        for name in ("vanilla", "uniform:layer=1", "sharp"):
            method = VARIANTS[name].build(0.2)
            logits, _, run = Asked(film, question.text).prefill(method)
            first, kept, _ = plainly(backbone, clip, question.text, method)
            assert run.kept.tolist() == kept
            torch.testing.assert_close(logits, first, rtol=1e-4, atol=1e-4)


def test_retention_one_is_vanilla(clip: SyntheticClip, film: Film) -> None:
    asked = Asked(film, clip.questions[0].text)
    expected, _, _ = asked.prefill(Vanilla())
    for name in ("sharp", "fastv", "random"):
        logits, _, run = asked.prefill(VARIANTS[name].build(1.0))
        assert torch.equal(logits, expected)
        assert len(run.kept) == len(asked.layout)


def asking_for(reply: str) -> Question:
    return Question("What color is the car?", reply, reply.split()[0], "color_in", (0, 0))


@pytest.mark.parametrize("name", ["fastv", "uniform:layer=1", "vanilla"])
def test_exact_match_is_of_the_whole_greedy_reply(film: Film, name: str) -> None:
    asked, method = Asked(film, "What color is the car?"), VARIANTS[name].build(0.2)
    said = asked.reply(method, 40)
    ended = asked.reply(method, 400) == said
    assert asked.is_right(method, asking_for(said))[0] == ended
    assert not asked.is_right(method, asking_for("Red is its color."))[0]
    words = asked.decode(asked.tokenizer(said).input_ids[:3])
    assert not asked.is_right(method, asking_for(words))[0]  # a reply that goes on is another reply


@pytest.mark.parametrize("name", ["vanilla", "random", "uniform:layer=1", "saliency", "fastv", "sharp", "visionzip"])
def test_choices_behind_a_draft_are_the_greedy_ones(film: Film, name: str) -> None:
    asked, method = Asked(film, "What color is the car?"), VARIANTS[name].build(0.2)
    logits, cache, run = asked.prefill(method)
    greedy = [int(logits.argmax())]
    while len(greedy) < TOKENS:
        greedy.append(int(asked._feed(greedy[-1:], cache, step=len(greedy) - 1)[-1].argmax()))
    chosen, drafted = asked._choices(method, greedy[:-1])
    assert chosen == greedy
    assert torch.equal(drafted.kept, run.kept)
    other = next(token for token in range(5, 100) if token not in greedy)
    wrong = [*greedy[:2], other, *greedy[3:]]
    assert asked._choices(method, wrong)[0][:3] == greedy[:3], "up to where the draft leaves the greedy reply"
    assert asked._choices(method, [other, *greedy[1:]])[0][0] == greedy[0]


def test_what_was_computed_for_a_question_goes_with_it(film: Film) -> None:
    asked = Asked(film, "What color is the car?")
    asked._choices(VARIANTS["uniform:layer=1"].build(0.2), [5, 6])
    asked._choices(VARIANTS["fastv"].build(0.2), [5, 6])
    (drafted,) = asked._drafted.values()
    states = [weakref.ref(one._start.hidden) for one in (asked, drafted)]
    gc.disable()  # a cycle would keep hundreds of rows of every layer until a collection happens to come
    try:
        del asked, drafted
        assert [state() for state in states] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("red is its color.", "red is its color.", True),
        ("red is its color", "red is its color.", True),
        ("Red is its color.", "red is its color.", True),
        ("red", "red is its color.", False),
        ("red is its shape.", "red is its color.", False),
        ("red is its color. red", "red is its color.", False),
        ("", "red is its color.", False),
    ],
)
def test_verdict_follows_the_records_rule(film: Film, said: str, answer: str, right: bool, monkeypatch) -> None:
    """With a model that says `said` and stops, whatever it sees."""
    asked = Asked(film, "What color is the car?")
    script = [*asked.tokenizer(said, add_special_tokens=False).input_ids, min(asked.ends)]
    width = asked.model.config.text_config.vocab_size
    fed: list[int] = []

    def logits_after(tokens: list[int]) -> torch.Tensor:
        row = torch.zeros(width)
        if script[: len(tokens)] == tokens:
            row[script[len(tokens)]] = 1
        return row

    def fake_prefill(method: Method):
        fed.clear()
        return logits_after([]), None, None

    def fake_feed(tokens, cache, step):
        rows = [logits_after([*fed, *tokens[: i + 1]]) for i in range(len(tokens))]
        fed.extend(tokens)
        return torch.stack(rows)

    monkeypatch.setattr(asked, "prefill", fake_prefill)
    monkeypatch.setattr(asked, "_feed", fake_feed)
    assert asked.is_right(FastV(0.2), asking_for(answer))[0] is right


@dataclass(frozen=True)
class DropsInside(FastV):
    """Drops between attention and MLP, before what its schedule says."""

    name = "drops-inside"

    def after_attention(self, layer: int, prefill: Prefill) -> Selection | None:
        return Selection(torch.arange(5)) if layer == 0 else None

    def before_layer(self, layer: int, prefill: Prefill) -> Selection | None:
        return None


def test_methods_that_drop_inside_a_layer_share_nothing_and_are_right(
    backbone: Backbone, clip: SyntheticClip, film: Film
) -> None:
    question = clip.questions[0].text
    logits, _, run = Asked(film, question).prefill(DropsInside(0.5))
    first, kept, _ = plainly(backbone, clip, question, DropsInside(0.5))
    assert run.kept.tolist() == kept == [0, 1, 2, 3, 4]
    torch.testing.assert_close(logits, first, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_shared_computation_pays(measured: Callable[[str, str, str], None]) -> None:
    """Processor time of every default row, the two ways in turn; below a factor of 2 the module does not pay."""
    backbone = load("tiny-llava-onevision", Settings(device="cpu"))
    plan = Plan(CORE, questions=5)
    shared_s = plain_s = 0.0
    for clip in choose_clips(backbone, plan):
        rows, _ = lay_out(backbone, clip, plan)
        runs = {row.run: row for row in rows}
        biases = BiasCache(), BiasCache()
        film = Film(backbone, clip.frames, biases[0])
        for question in clip.questions:
            subject, layout = Subject(clip, question), Asked(film, question.text).layout
            methods = [replace(row.method, **subject.knowledge(row.variant, layout)) for row in runs.values()]
            began = time.process_time()
            asked = Asked(film, question.text)
            verdicts = [asked.is_right(method, question)[0] for method in methods]
            between = time.process_time()
            most = len(asked.tokenizer(question.answer, add_special_tokens=False).input_ids) + SLACK_TOKENS
            for method, verdict in zip(methods, verdicts, strict=True):
                _, _, reply = plainly_on(backbone, film.features, clip, question.text, method, biases[1], most)
                assert question.correct(reply) == verdict
            shared_s, plain_s = shared_s + between - began, plain_s + time.process_time() - between
    measured("plain asking / shared asking, processor time", f"{plain_s / shared_s:.2f}", "at least 2")
    assert plain_s > 2 * shared_s


@torch.no_grad()
def test_a_film_whose_patches_merge_has_rows_of_its_own(film: Film) -> None:
    merging = TowerMerging(0.6)
    other = film.merged(merging)
    assert film.merged(merging) is other
    assert (film.features.merging, other.features.merging) == (None, merging)
    question = "What color is the car?"
    logits, _, run = Asked(other, question).prefill(ToMe(retention=0.6))
    assert not run.note
    assert not torch.equal(logits, Asked(film, question).prefill(Vanilla())[0])
    assert Asked(film, question).prefill(ToMe(retention=0.6))[2].note
