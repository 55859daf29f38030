"""What visitors read, in one place: page, charts, report and progress. Scripts and templates get their words from here.

What is wrong with an input is said where it is found, by the typed errors; what a method is, by its class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time this module needs no other
    from sharp_demo.records import ModelInfo, Result
    from sharp_demo.settings import Settings

NAME = "ShaRP side by side"
CLAIM = (
    "A video LLM cuts every frame into patches and reads each patch as one token. The methods here drop most of these "
    "tokens: see what each one keeps, whether the answer holds, and what it saves."
)
LINKS = "[Paper]({paper}) · [How to cite](#cite)"
CITE = "How to cite"
CITATION = """@article{xia2025sharp,
  title   = {ShaRP: SHAllow-LayeR Pruning for Video Large Language Models Acceleration},
  author  = {Xia, Yingjie and Liu, Tao and Shi, Jinglei and Xie, Qingsong and Guo, Heng and Yang, Jian and Wang, Xi},
  journal = {arXiv preprint arXiv:2512.05385},
  year    = {2025}
}"""

VIDEO = "Video"
QUESTION = "Question"
QUESTION_PLACEHOLDER = "What happens in the clip?"
MODEL = "Model"
METHODS = "Methods"
RETENTION = "Visual tokens kept, %"
MATCH = "Budget"
MATCH_INFO = (
    "Same token count for all, or the compute that FastV (K=2) needs at this share: of the prefill, or of all that the "
    "first token needs, vision tower included"
)
MATCH_CHOICES = [
    ("same tokens", "tokens"),
    ("same FLOPs as FastV", "flops"),
    ("same cost to the first token", "ttft"),
]
FRAMES = "Frames"
FRAMES_DEFAULT = "model default"
ADVANCED = "Advanced"
SEED = "Seed"
MAX_NEW_TOKENS = "Answer length, tokens at most"
RUN = "Run"
STOP = "Stop"
LEAVE = "Leave the queue"

SPEED_HELP = (
    "Speed-up: vanilla's time over the method's, the median of the ratios within a timing round (bars: their range). "
    "First token: with reading the video and the vision tower, which pruning does not shorten. FLOPs ratio: what the "
    "arithmetic alone allows. Small models and CPUs gain less than 7B models on a GPU."
)
ATTENTION_HELP = (
    "ShaRP subtracts the attention a black video would get at the same positions, so that late frames do not win "
    "by position alone. Dotted lines: segment boundaries. Shaded: where an example clip holds the evidence."
)
ACCURACY_HELP = (
    "Left: how many visual tokens each layer had to work on; what is dropped early saves every later layer. Right: "
    "accuracy from the stored benchmark of the embedded model on held-out synthetic clips, every method keeping the "
    "same share of tokens; the rings mark the share this run kept, on the stored curve. One answer is no accuracy."
)
BY_LAYER = "Show attention by layer"
BY_LAYER_BUSY = "Computing the attention of every layer …"
JSON = "Download JSON"
REPORT = "Download HTML report"
PICTURE = "Download PNG of this view"
LINK = "Copy link to these settings"
LINK_COPIED = "Copied: the link holds the question and the settings, and the clip if it is an example."
API = "Use it from a program"

# What the token columns say; `{...}` is filled in by their script.
THEATRE: dict[str, Any] = {
    "section": "Comparison",
    "controls": "Frames and views",
    "show": "Show",
    "kinds": {"kept": "kept tokens", "raw": "raw attention", "bias": "position bias", "debiased": "debiased"},
    "legend": "Legend",
    "help": "What the marks and keys mean",
    # A mark of its own says why a token was kept; a role that is not here is marked by its first letter.
    "marks": {
        "register": "●",
        "filled": "○",
        "merged": "+",
        "grid": "□",
        "dominant": "▲",
        "contextual": "◆",
        "static": "■",
    },
    "roles": {
        "kept": "kept",
        "dropped": "dropped",
        "absorbed": "merged into another",
        "register": "register",
        "filled": "filled in",
        "merged": "holds merged",
        "grid": "uniform grid",
        "dominant": "most attended in the vision tower",
        "contextual": "mean of similar ones",
        "static": "stands for its segment's frames",
    },
    "stale": "As of the earlier question “{question}”. Changed since: {names}. Press Run for a new answer.",
    "input_names": {
        "video": "the clip",
        "question": "the question",
        "methods": "the methods",
        "retention": "the share kept",
        "model": "the model",
    },
    "settings": "the settings",
    "no_picture": "The pictures of the frames are no longer on the server: run the comparison again to see them.",
    "more": "All figures",
    "race": "Race",
    "race_help": "Replay the measured times to the first token, all columns on one clock.",
    "race_parts": {"read": "read the video", "see": "see it", "prefill": "prefill"},
    "race_time": "{name}: {ms} ms",
    "race_total": "first token after {ms} ms",
    "race_slowed": "measured times, slowed {factor}×",
    "race_hurried": "measured times, {factor}× as fast",
    "scores": {"raw": "raw", "bias": "bias", "debiased": "debiased"},
    "evidence": "evidence",
    "evidence_help": "Where the clip shows what the question asks for",
    "segments": "{label}: {count} segments",
    "segment": "{label}: 1 segment",
    "span": "{name}, frames {from} to {to}",
    "frame": "Frame",
    "play": "Play frames",
    "pause": "Pause frames",
    "time": "frame {frame} / {frames} · {seconds} s",
    "layer": "Layer",
    "layer_end": "Layer: after all",
    "layer_at": "Layer: entering {layer}",
    "layer_label": "{label}, frame {frame} of {frames}: {kept} of {total} tokens enter layer {layer}",
    "layer_line": "frame {frame}: {kept} of {total} tokens enter layer {layer}, whole clip: {all} of {visual}",
    "forgotten": "After the prefill its cache holds {cached} of them: the others' keys and values are forgotten.",
    "left": "dropped before layer {layer}",
    "left_merged": "{fate}, before layer {layer}",
    "keys": (
        "Keys: ← → frame, space play, 1–9 jump to tenths of the clip, f stage mode. Point at a patch, or tap it, for "
        "its scores."
    ),
    "grid_role": "token grid, arrow keys move between tokens",
    "canvas_label": "{label}, frame {frame} of {frames}: {kept} of {total} tokens kept",
    "frame_line": "frame {frame}: {kept} of {total} tokens kept",
    "no_score": "this method computes no such score",
    "colour_line": "colour: {low} and less (dark) to {high}; outlined: kept",
    "token_line": "token {token} · frame {frame} · {time} s\nrow {row}, column {col}",
    "kept": "kept",
    "kept_as": "kept: {role}",
    "absorbed_by": "merged into token {token} (frame {frame}, row {row}, column {col})",
    "rank": "rank {rank} of {count} by {by}",
    "empty_answer": "(empty answer)",
    "no_answer": "(no answer)",
    "sure_tick": "vanilla",
    "sure_help": "The model's probability of the first word piece it answered with; the tick is vanilla's.",
    "strip_title": "All frames at once",
    "strip_help": "Bars: share of each frame's tokens that was kept. Red: segment boundaries. Click a frame to see it.",
    "strip_label": "{label}, tokens kept per frame: {kept}",
}

# The line above the columns that says what a comparison came to.
VERDICT = {
    "none_dropped": "No visual token dropped.",
    "same": "same answer",
    "another": "another answer",
    "empty": "empty answer",
    "noisy": "prefill too noisy to time",
    "processor": "in processor time",
    "alone": "Vanilla alone: choose a method that prunes to compare it with.",
    "no_vanilla": "Vanilla was not chosen: there is no full answer to compare with.",
    "vanilla_stopped": "Vanilla was stopped: there is no full answer to compare with.",
    "vanilla_empty": "Vanilla gave an empty answer: there is nothing to compare with.",
    "stopped": "{names}: stopped while answering.",
    "not_run": "{names}: not run.",
    "failed": "{names}: failed.",
    "foreign": "This small model knows only drawn shapes and letters: its answers about other clips mean nothing.",
}


def listing(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def dropped(least: int, most: int) -> str:
    share = f"{most} %" if least == most else f"{least} to {most} %"
    return f"{share} of the visual tokens dropped."


def prefill_speed(least: float, most: float, same: float, clock: str = "") -> str:
    """Return how the prefill's time compares: `least` and `most` are vanilla's time over the methods'."""
    low, high = f"{least:.1f}", f"{most:.1f}"
    span = f"{low}×" if low == high else f"{low} to {high}×"
    if least > 1 + same:
        text = f"prefill {span} faster"
    elif most < 1 - same:
        fast, slow = f"{1 / most:.1f}", f"{1 / least:.1f}"
        text = f"prefill {fast if fast == slow else f'{fast} to {slow}'}× slower"
    elif least >= 1 - same and most <= 1 + same:
        text = "prefill as fast"
    else:
        text = f"prefill {span} as fast"
    return f"{text} {clock}".rstrip()


EXAMPLES = "Examples"
# Words of a question that do not tell it from others.
SMALL_WORDS = frozenset({"a", "an", "are", "in", "is", "it", "of", "the", "there", "to", "what", "which"})
SHORT_WORDS = 3


def short(question: str) -> str:
    """Return the few words by which an example is called: the last of its question that say something."""
    told = [word for word in question.strip(" ?.!").split() if word.casefold() not in SMALL_WORDS]
    name = " ".join(told[-SHORT_WORDS:])
    return name[:1].upper() + name[1:]


def too_noisy_for(text: str, names: Sequence[str]) -> str:
    return f"{text} ({listing(names)}: too noisy to time)"


API_SHELL = "The same without Python:"
KNOB_NAMES = {"penalty": "λ", "layer": "K", "segm": "SegM", "posc": "PosC", "regd": "RegD"}
# What an error says was wrong: "retention is 2; it must be between 0.01 and 1."
INPUTS = {"retention": "retention", "frames": "frames", "answer": "answer length"}
KINDS = {"method": "method", "budget": "budget", "model": "model"}

WAIT_OTHER = "Waiting for another run to finish"
READING = "Reading the video"
ENCODING = "Encoding the frames"
IDLE = "Choose an example or upload a clip, ask a question, and press Run."
QUEUED = "Waiting for the model …"
STARTING = "Starting …"
REFUSED = "Nothing was run: too many are waiting, or the clip is gone. Your inputs are kept; try again in a moment."
LEFT = "You left the queue; nothing was run."
WAITING = "waiting"
RUNNING = "running"
ANSWERING = "answering"
DONE = "done"
STOPPED = "stopped"
FAILED = "error"
NOT_RUN = "stopped before it began"
NOT_RUN_CELL = "not run"
NO_VERDICT = "no verdict"
STOPPING = "Stopping …"
# Which of the paper's two readings ShaRP scored with; the two share few of their tokens.
READINGS = {
    "lookahead": "Scores: attention of the layer that is about to run (look-ahead).",
    "first": "Scores: attention of layer 0, the paper's literal reading.",
}
UNTRAINED = "Untrained model: the answer is meaningless."
INTERNAL = "Something broke on our side; the server's log has the details. Your inputs are kept."
NO_RUN = "Run a comparison first."

NO_VIDEO = "Choose a video first: upload one or pick an example."
NO_METHOD = "Choose at least one method."
NOT_UPLOADED = "The video must be a file uploaded to this server or one of its examples."
BEYOND_BOUNDS = "a number beyond all bounds"
A_LIST = "a list of values"
A_SHORT_TEXT = "a short text"
A_WHOLE_NUMBER = "a whole number"
NAMES_LIST = "a list of names"
A_NUMBER = "a number"
A_NAME = "a name"
NO_URL = "Web addresses are not fetched: upload the video file itself."

UPLOAD_GONE = "The uploaded file is gone; upload it again."
A_FILE = 'an uploaded file: {"path": ..., "meta": {"_type": "gradio.FileData"}}, or handle_file(...) in Python'
NO_JSON = "The request is not a JSON object in UTF-8."
NO_FUNCTION = "This page has no event of that fn_index; reload it."
PRESSED_TWICE = "Run was pressed twice; the first run goes on."
NO_ROUTE = "There is nothing at this address."
NO_EVENT = "There is no such event, or it is not this session's."
NO_SESSION = "The server does not know this page any more; reload it."
NO_FILE = "The form holds no file named files."
REFUSED_TITLE = "Refused"
ODD_VALUES = "The request's values are not what its inputs take."

CHECK_BUSY = "Many clips arrive at once: this one is checked when you press Run."
FOREIGN_ORIGIN = "Requests from pages of other origins are refused."
NO_LENGTH = "The request does not say how long it is; send Content-Length."
NO_ROOM = "The server has no room for another upload now; try again in ten minutes, or use an example."
NO_DISK = "The server's disk is full: the run could not be stored. Its operator has to free space."

ABOUT_TITLE = "What you see, and what each method does"
ABOUT = """
All methods share one decoding and one vision pass; each column's total is as if it had run alone.
Dropped patches are dimmed and hatched. Use the slider, the arrow keys or the clip's own player to move through the
frames; point at a patch for its scores.
"""


def about(groups: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return the explanation below the results, with the `method_line`s of each titled group, as Markdown."""
    lines = []
    for title, members in groups:
        lines += ["", f"**{title}**", "", *members]
    return "\n".join([ABOUT, *lines])


def method_line(title: str, summary: str, paper: str, year: int | None) -> str:
    link = f" [Paper{f', {year}' if year else ''}]({paper})" if paper else ""
    return f"- **{title}**: {summary}{link}"


def loading(model: str) -> str:
    return f"Loading {model}"


def less_frames(label: str) -> str:
    return f"{label} ran out of memory; trying it again with half the frames"


def clip_line(info: Any) -> str:
    """Return size, length and codec of a probed clip in one line."""
    return (
        f"{info.width} × {info.height}, {info.duration_s:.1f} s, {info.fps:.3g} fps, {info.codec} in {info.container}"
    )


def wrong_link(names: Sequence[str]) -> str:
    return f"The link's {', '.join(names)} cannot be used here and was left out."


def sure(probability: float) -> str:
    """Return the first token's probability as a column shows it."""
    return f"First word {probability:.1%} sure"


def agreement(same: bool, probability: float | None, baseline: float | None) -> str:
    """Return a column's badge: whether its answer is vanilla's, and if so whether it was as sure of it."""
    if not same:
        return "differs from vanilla"
    points = 0 if probability is None or baseline is None else round(100 * (probability - baseline))
    if points == 0:
        return "same answer as vanilla"
    unit, direction = "point" if abs(points) == 1 else "points", "more" if points > 0 else "less"
    return f"same answer, {abs(points)} {unit} {direction} sure"


def limits(settings: Settings) -> str:
    """Return the upload limits in one line."""
    return (
        f"Up to {settings.max_upload_mb:g} MB, {settings.max_duration_s:g} s, {settings.max_side} pixels a side; "
        "uploads stay on this machine and are deleted within the hour."
    )


def twice(method: str) -> str:
    return f"{method} is chosen twice with the same settings; choose it once."


def too_long(limit: int, length: int) -> str:
    return f"The question has {length} characters; at most {limit} are allowed."


def timed_out(seconds: float) -> str:
    return f"Stopped after {seconds:g} s, the limit of one run."


def unknown(kind: str, value: object, options: object) -> str:
    return f"Unknown {kind} {value!r}; choose from {', '.join(map(str, options))}."  # type: ignore[call-overload]


def out_of_range(name: str, value: object, low: float, high: float) -> str:
    return f"{name} is {value}; it must be between {low:g} and {high:g}."


def too_deep(levels: int) -> str:
    return f"The request's JSON is nested too deep; at most {levels} levels are allowed."


def no_number(name: str) -> str:
    return f"The request's JSON holds {name}, which is no number."


def wrong_value(name: str, wanted: str, value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return f"{name} must be {wanted}, not {kinds.get(type(value), 'null')}."


def old_form(name: str) -> str:
    return f'{name} is given in its old form {{"{name}": file}}; give the file itself, as in {name}=handle_file(...).'


def wrong_count(names: Sequence[str], given: int) -> str:
    return f"data must have {len(names)} values ({', '.join(names)}), not {given}."


def wrong_names(known: Sequence[str], odd: Sequence[str], missing: Sequence[str]) -> str:
    if missing:
        return f"Values are missing: {', '.join(missing)}."
    return f"{len(odd)} unknown names were given; the parameters are {', '.join(known)}."


def unknown_endpoint(name: str) -> str:
    return f"There is no such endpoint; the API has one: /{name}."


def sentence(message: str) -> str:
    """Return an error's message as visitors read it: errors start in lower case and end without a period."""
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")


def internal(run: str) -> str:
    return f"Something broke on our side; the server's log has the details (run {run}). Your inputs are kept."


def foreign_host(name: str) -> str:
    return f"This server does not answer to the name {name[:100]!r}. Its operator can allow it: SHARP_ALLOWED_HOSTS."


def too_often(limit: int, wait: int) -> str:
    return f"Too many requests: {limit} a minute are allowed. Try again in {wait} s."


def many_waiting(own: int) -> str:
    return f"The queue is nearly full and {own} of your requests wait in it; ask again when one has run."


def too_many_uploads(limit: int) -> str:
    return f"Too many uploads at once: {limit} are allowed. Wait until one has ended."


SILENT_UPLOAD = "The upload sent nothing for too long and was given up; try again."


def too_large(limit: int) -> str:
    return f"The request is too large; at most {limit / 1e6:.0f} MB are accepted."


# -- modes -------------------------------------------------------------------------------------------------------

MODE_COMPARE = "Compare"
MODE_ABLATE = "Ablate"
MODE_SWEEP = "Sweep"
MODE_WALK = "How it works"
MODE_BENCHMARKS = "Benchmarks"
METHOD = "Method"
EMPTY_ANSWER = THEATRE["empty_answer"]
TABLE = "Table"

SWEEP_HELP = (
    "**Where does the answer flip?** The chosen methods answer the question again and again while fewer and fewer "
    "visual tokens are kept, from 100 % down to 2 %. It uses the clip, the question and the settings next to it; the "
    "slider for tokens kept does not matter here."
)
SWEEP_STEPS = "Steps"
SWEEP_CHOICES = [("12 steps, 100 to 2 %", "fine"), ("6 steps, quicker", "coarse")]
SWEEP_RUN = "Run the sweep"
SWEEP_IDLE = "Choose an example or upload a clip, ask a question, and run the sweep."
NO_PRUNING = "Choose at least one method that prunes: vanilla is always run as the reference."


def queue_full(waiting: int) -> str:
    return f"The queue is full: {waiting} waiting. Nothing was run, and your inputs are kept; try again in a moment."


def queued(ahead: int) -> str:
    """Return what a waiting page says; `ahead` counts the run that goes on and those that wait."""
    return f"{QUEUED} {ahead} ahead of you." if ahead else QUEUED


def decoded(frames: int, ms: float, decoder: str = "") -> str:
    return f"{frames} frames decoded in {ms:.0f} ms{f' ({decoder})' if decoder else ''}."


def own_frames(frames: int) -> str:
    return f"Saw {frames} frames, encoded for this method alone: its vision pass is not shared."


def own_cells(rows: int, cols: int) -> str:
    return f"Saw frames of {rows} x {cols} tokens, encoded for this method alone: its vision pass is not shared."


def own_tower(share: float) -> str:
    return (
        f"Patches merged in the vision tower, {share:.0%} are left behind it: the vision pass of this method is not "
        "shared."
    )


def of_frames(encoded: int, given: int) -> str:
    return f"{encoded} of {given}"


def encoded(tokens: int, ms: float, cached: bool, frames: int, given: int) -> str:
    which = f", {frames} of {given} frames, the others are equal" if frames < given else ""
    return f"{tokens} visual tokens encoded {'from the cache' if cached else f'in {ms:.0f} ms'}{which}."


def step(number: int, total: int, label: str) -> str:
    return f"{number} of {total}: {label}"


def ended(done: int, total: int, failed: int, seconds: float, model: ModelInfo | None, *, stopped: bool) -> str:
    """Return how a run ended, and where it ran."""
    where = f" on {model.name} ({model.device}, {model.dtype}, {model.attention_backend})" if model else ""
    ending = f"; {failed} failed" if failed else ""
    if stopped:
        return f"Stopped after {done} of {total} answers, {seconds:.1f} s{where}{ending}."
    return f"{done} answers in {seconds:.1f} s{where}{ending}."


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def at_share(label: str, share: float) -> str:
    return f"{label} at {percent(share)}"


def sweep_caption(answer: str, tokens: int) -> str:
    same = f"✓ the answer of vanilla ({tokens} tokens): “{answer.strip() or EMPTY_ANSWER}”"
    return f"{same}; ✗ another answer. Below it: the tokens that were kept."


def verdict(holds: float, flips: float | None, returns: float | None) -> str:
    """Return what a sweep found about one method: the retentions of `views.sweep.Verdict`."""
    if flips is None:
        return f"holds down to {percent(holds)}"
    text = f"holds to {percent(holds)}, flips at {percent(flips)}"
    return f"{text}, same again at {percent(returns)}" if returns is not None else text


def kept_count(kept: int, visual: int) -> str:
    return f"{kept} ({100 * kept / visual:.3g}\u00a0%)"


def point(answer: str, kept: int, visual: int, probability: float | None) -> str:
    sure = "" if probability is None else f"; first token's probability {probability:.3f}"
    return f"{answer.strip() or EMPTY_ANSWER} ({kept} of {visual} tokens kept{sure})"


VANILLA = "Vanilla"
ON, OFF = "● on", "○ off"
SCORE_LAYERS = {"lookahead": "look-ahead", "first": "layer 0"}
MODULE_NAMES = {"segm": "SegM", "posc": "PosC", "regd": "RegD"}
ABLATE_HELP = (
    "**What does each part of ShaRP do here?** SegM masks attention between segments, PosC subtracts the black video's "
    "bias, RegD refines the selection; the scores come from the layer about to run (look-ahead) or, as the paper says "
    "literally, from layer 0. Same clip, same question, same share of tokens, next to vanilla. One clip is an "
    "illustration: what the modules do on average is under Benchmarks."
)
ABLATE_PLAN = "Switches"
ABLATE_CHOICES = [
    ("one off at a time", "one"),
    ("the paper's Table 5", "paper"),
    ("all 8", "all"),
    ("all 16, both scoring layers", "both"),
]
ABLATE_RUN = "Run the ablation"
ABLATE_IDLE = "Choose an example or upload a clip, ask a question, and run the ablation."
ABLATE_CAPTION = (
    "In common: share of the kept tokens that ShaRP with all switches on keeps too. Frames: frames of which any token "
    "is kept. ✗: another answer than vanilla's."
)
ABLATE_HEAD = ["", "SegM", "PosC", "RegD", "Scores", "Answer", "First token", "In common", "Frames", "Prefill"]


def variant(setting: Mapping[str, Any]) -> str:
    """Return the title of ShaRP with these switches."""
    on = [name for key, name in MODULE_NAMES.items() if setting[key]]
    title = "All on" if len(on) == 3 else " + ".join(on) or "No module"
    return title if setting["score_layer"] == "lookahead" else f"{title}, layer 0"


WALK_HELP = (
    "**How ShaRP chooses, on this clip.** Three steps: SegM cuts the video into segments, PosC takes the position's "
    "share out of the attention, RegD makes the selection diverse. Every number below is of this run."
)
WALK_RUN = "Show me"
WALK_IDLE = "Choose an example or upload a clip, ask a question, and press Show me."
WALK_FULL = "At 100 % nothing is pruned and there is nothing to explain: keep fewer tokens."
WALK_SEGM = "1 · SegM: where does the video change?"
WALK_POSC = "2 · PosC: what would position alone win?"
WALK_REGD = "3 · RegD: say it once"
WALK_END = "What is left"
WALK_SCORES = {"raw": "raw attention", "bias": "black video", "debiased": "debiased"}
WALK_CHANGE = "what PosC changed"
WALK_STEPS = {"registers": "Top K", "prefilter": "Pre-filter", "dedup": "Deduplicate", "fill": "Fill"}
# What the script of the walk says; `{...}` is filled in there.
WALK = {
    "frame": "frame {frame}",
    "time": "{seconds} s",
    "cosine": "cos {cosine}",
    "cosine_label": "cosine to the frame before {cosine}",
    "cut": "a segment begins",
    "chosen": "{count} tokens chosen",
    "no_picture": "The pictures of the frames are no longer on the server: press the button again.",
}
SHARP = "ShaRP"
WALK_FATES = {
    "other": "not chosen",
    "register": "register",
    "prefiltered": "pre-filtered: like a register",
    "absorbed": "absorbed by a pivot",
    "pivot": "pivot, holds absorbed ones",
    "filled": "filled in",
    "repaired": "filled in by score",
    "gone": "dropped",
    "added": "brought in by PosC",
    "removed": "put out by PosC",
}


def walk_segm(cosines: Sequence[float], tau: float, segments: int) -> str:
    """`cosines`: of each frame to the one before it."""
    if not cosines:
        return "One frame is one segment."
    low = min(range(len(cosines)), key=cosines.__getitem__)
    cut = f"{segments} segments" if segments > 1 else "one segment"
    return (
        f"Between the frames: the cosine of their mean embeddings. Below τ = {tau:g} (Eq. 3) a new segment begins, so "
        f"these {len(cosines) + 1} frames make {cut}. The lowest, {cosines[low]:.2f}, is before frame {low + 2}."
    )


def walk_mask(visible: float) -> str:
    return (
        "Who sees whom in layer 0, frame by frame: coloured, attention that SegM keeps; hatched, what causal attention "
        f"would compute and SegM masks (Eq. 4). {visible:.0%} of the visual pairs remain."
    )


def walk_posc(penalty: float, k: int, late_frames: float, before: float, after: float) -> str:
    """`late_frames`: the last third's share of all tokens; `before`, `after`: its share of the top K."""
    return (
        "The last word of the prompt looks at the video; tokens that it looks at most are kept. Part of that look is "
        f"habit: a black video gets it too. PosC subtracts λ = {penalty:g} times that (Eq. 5) and takes the top "
        f"K = {k}. The last third of the frames ({late_frames:.0%} of the tokens) has {before:.0%} of the top K before "
        f"and {after:.0%} after."
    )


def walk_heat(kind: str, low: float, high: float) -> str:
    what = {
        "raw": "Attention of the prompt's last token to each patch.",
        "bias": "The same prompt on a black video: what each position gets whatever it shows.",
        "debiased": "Raw minus λ times the black video's: what the top K are chosen by.",
    }[kind]
    return f"{what} Dark {low:.2g}, bright {high:.2g} and above."


def walk_change(brought: int, k: int) -> str:
    return f"PosC exchanged {brought} of the top {k} tokens."


def walk_regd(k: int, tokens: int) -> str:
    return (
        f"The top {k} of {tokens} tokens, the registers, often repeat each other from frame to frame. Inside each "
        "segment RegD puts away what says the same and spends the places on what says something else."
    )


def walk_steps(
    *,
    k: int,
    others: int,
    prefiltered: int,
    absorbed: int,
    pivots: int,
    filled: int,
    repaired: int,
    tau_filter: float,
    tau_merge: float,
) -> dict[str, str]:
    """Return the sentence of each of RegD's steps, from how many tokens of each kind there are."""
    return {
        "registers": f"The {k} tokens with the highest debiased scores are the registers.",
        "prefilter": (
            f"{prefiltered} of the {others} other tokens resemble a register of their segment (cosine above "
            f"{tau_filter:g}) and are out: they would add nothing."
        ),
        "dedup": (
            f"{absorbed} of the {k} registers resemble the pivot before them (cosine above {tau_merge:g}) and are "
            f"absorbed by {pivots} pivots."
        ),
        "fill": (
            f"The {absorbed} free places go to the most different of the tokens left (Eq. 6): {filled} from clusters, "
            f"{repaired} by score. Again {k} tokens."
        ),
    }


def walk_end(result: Result, vanilla: Result | None, same: bool) -> str:
    """Return the last sentence; of an answer that was stopped it says that, and compares nothing."""
    own = (
        f"ShaRP answers “{result.answer.strip() or EMPTY_ANSWER}” from {result.tokens.kept} of "
        f"{result.tokens.visual} visual tokens"
    )
    if result.status == "stopped":
        return f"Stopped while it was answering: {own} so far."
    if vanilla is None:
        return f"{own}."
    if same:
        return f"{own}; vanilla, with all of them, says the same."
    return f"{own}; vanilla, with all of them, answers “{vanilla.answer.strip() or EMPTY_ANSWER}”."


BENCH_HELP = (
    "**What was measured before.** Stored results of this project, made by `make results` and `make bench` and kept in "
    "`docs/results`. Nothing is run here."
)
BENCH_NONE = "No stored results were shipped with this copy."
BENCH_MATCH = [("same tokens", "tokens"), ("same FLOPs as FastV", "flops")]
BENCH_ABLATION = (
    "### ShaRP's modules and readings\nThe rows of the paper's Table 5 and each reading the other way round. With "
    "look-ahead scores RegD is the module that shows on these clips; the scoring layer decides."
)
BENCH_SPEED = "### Speed\nPrefill of a published configuration with random weights, each round against vanilla."
BENCH_SPEED_CAPTION = (
    "Speed-up: median of the ratios within a round. FLOPs ratio: what the arithmetic alone allows. n/a: the times "
    "spread too much to say."
)
BENCH_SPEED_HEAD = ["Method", "Prompt", "Device", "R", "Prefill", "Speed-up", "FLOPs ratio"]
BENCH_LIMITS = """### What they say, and what they do not
- **What is kept decides the answer**: with the cut before layer 1, a random choice of as many tokens is far behind.
- **Equal FLOPs, 15 % of the tokens and less.** ShaRP is 3 to 5 points ahead of FastV and Feather on LLaVA-OneVision,
  and within the interval of the best on Qwen2-VL.
- **What is lost is the count.** Few tokens answer what is looked up, not how many scenes there are.
- **Nothing about 7B models.** Two models of 2.5 and 2.8 million parameters, trained on drawn clips, on which attention
  methods win by construction: the evidence is one or two tokens.
- **Public benchmarks** stand below, apart from these; speed was measured on a CPU only.
"""

BOARD_HELP = (
    "### The paper's benchmarks\nAverage accuracy on MVBench, LongVideoBench, MLVU and VideoMME (without MLVU for "
    "Qwen2-VL) against cost. Hollow marks are what the ShaRP paper prints, filled ones what "
    "`python -m sharp_demo reproduce` measured and `docs/results/paper` keeps."
)
BOARD_TITLES = {"tflops": "Accuracy and prefill cost", "first_token_ms": "Accuracy and time to the first token"}
BOARD_AXES = {"tflops": "TFLOPs of a prefill, as the paper counts", "first_token_ms": "median ms to the first token"}
BOARD_ACCURACY = "average accuracy, percent"
BOARD_EMPTY = (
    "Nobody has measured this model here yet: there are no filled marks, and no times, since the paper prints none to "
    "the first token."
)


def board_series(method: str, source: str) -> str:
    return f"{method}, {'the paper' if source == 'paper' else source}"


def board_rehearsed(questions: int) -> str:
    return (
        f"A rehearsal: {questions} questions a row about drawn films, in the benchmarks' formats. The model was never "
        "taught letters: these scores show that the way from question to table works, and nothing about any method."
    )


def board_measured(questions: int) -> str:
    return f"Measured here on {questions} questions a row; `docs/results/paper` has intervals and every benchmark."


def bench_retention(share: float) -> str:
    return f"R = {percent(share)}"


def bench_prompt(config: str, visual: int) -> str:
    return f"{config}, {visual} tokens"


def bench_refused(reason: str) -> str:
    return f"n/a ({reason})"


def bench_caption(model: str, count: int) -> str:
    return f"{model}: exact match in percent (95 % interval), {count} questions about held-out synthetic clips."


STORED = "stored"
KIOSK_BANNER = "Touch the screen to try it"
EXAMPLE_BUSY = "A run is on: stop it or wait for its end, then choose another example."
KIOSK_HINT = "Stored results of the examples, one after another."
NO_UPLOAD = "This kiosk answers about its own examples only: pick one of them."


def stored(name: str, device: str, dtype: str) -> str:
    return f"Stored result, computed earlier on {name} ({device}, {dtype}). Press Run to compute it now."


# -- charts and figures ------------------------------------------------------------------------------------------

TIME = "time, s"
LAYER = "decoder layer"
SHARED = "{name} (shared)"
OTHER = "other"
REST = "{name}, other"
EVIDENCE = "evidence"
STAGES = {
    "decode_video": "decode video",
    "vision": "vision tower",
    "vision_scores": "vision-tower scores",
    "bias_setup": "bias set-up (first use)",
}
SCORES = {"raw": "raw attention", "bias": "position bias (black video)", "debiased": "debiased"}
CHART_ATTENTION = "{label}: attention per frame"
CHART_ATTENTION_Y = "sum over the frame's tokens"
CHART_LAYERS = "Attention per frame in layer {layer} (λ = {penalty:g})"
CHART_LAYERS_Y = "share of attention"
CHART_LAYERS_SLIDER = "Decoder layer"
CHART_MAP = "Layer by frame, before and after debiasing (λ = {penalty:g})"
CHART_MAP_HOVER = "%{x:.2f} s, layer %{y}: %{z:.1%}"
CHART_LATENCY = "Time by stage, total as if run alone"
CHART_LATENCY_X = "ms"
CHART_LATENCY_HOVER = "%{y}: %{x:.1f} ms"
CHART_SPEED = "Speed-up and FLOPs ratio (vanilla = 1)"
CHART_SPEED_Y = "times"
CHART_SPEED_BARS = ("first token, measured", "prefill, measured", "FLOPs ratio, exact", "FLOPs ratio, paper formula")
CHART_NO_VANILLA = "Run vanilla too: the ratios are measured against it."
CHART_NOISY = "too noisy"
CHART_NO_PRUNING = "Choose a pruning method to compare with vanilla."
CHART_KEPT = "Tokens kept per frame"
CHART_KEPT_Y = "share kept"
CHART_DEPTH = "Visual tokens that enter each layer"
CHART_DEPTH_Y = "share of visual tokens"
CHART_ACCURACY = "Stored accuracy against the share of tokens kept"
CHART_ACCURACY_X = "share of visual tokens kept"
CHART_ACCURACY_Y = "accuracy"
CHART_ACCURACY_RUN = "{label}: kept in this run"
CHART_NO_ACCURACY = "No stored benchmark for this model."
CHART_SWEEP = "How sure the model is of its answer"
CHART_SWEEP_X = "visual tokens kept, %"
CHART_SWEEP_Y = "probability of the first token"
CHART_SWEEP_HOVER = "%{x:.3g} %: %{y:.3f}, %{text}"
SAME_ANSWER, ANOTHER_ANSWER = "same answer", "another answer"
CHART_STORED = "Accuracy on held-out clips, {model}"
CHART_STORED_X = "share of visual tokens asked for"

NOT_MEASURED = "n/a"
NOT_TIMED = "not timed"
TO_BE_TIMED = "…"


def timing(seconds: float) -> str:
    return f"All have answered. Timing the prefills in rounds, for about {seconds:g} s"


def too_noisy(low: float, high: float) -> str:
    digits = 1 if high - low >= 0.15 else 2  # never the same figure twice
    return f"{low:.{digits}f} to {high:.{digits}f}×, too noisy to say"


def of_at_most(ratio: str, ceiling: str) -> str:
    return f"{ratio}, at most {ceiling}"


def rounds(low: float, high: float, count: int) -> str:
    """Return the range of the ratios of `count` rounds; one has none."""
    return "1 round" if count == 1 else f"{low:.2f} to {high:.2f}×, {count} rounds"


def once(ms: str, flops: str) -> str:
    """Return what was paid once; `ms` is empty where an earlier run paid it."""
    return f"{ms or 'paid before'}, {flops}"


# Label and help of the key figures of a result.
FIGURES = {
    "kept": (
        "Tokens kept",
        "Visual tokens left after the last prune, of all visual tokens: as achieved, not as asked.",
    ),
    "first_token_speedup": (
        "First token, speed-up",
        "Vanilla's time to the first token over this method's: reading the video and seeing it (vision tower), the "
        "same for both, are in it. At most: what it would be if this method's prefill took no time at all.",
    ),
    "speedup": (
        "Prefill speed-up",
        "Vanilla's prefill time over this method's: the median of the ratios within a timing round. Below 1 it is "
        "slower.",
    ),
    "flops_ratio": (
        "FLOPs ratio",
        "Vanilla's exact prefill FLOPs over this method's: what the arithmetic alone allows.",
    ),
    "rounds": (
        "Prefill speed-up, range",
        "Least and largest ratio of one timing round. A round times vanilla and every method once, one after another.",
    ),
    "cpu": (
        "in processor time",
        "The same ratio in processor time: what other programs on the machine take is not in it.",
    ),
    "prefill": ("Prefill", "Language model over the prompt, pruning included: the median of the timing rounds."),
    "first_token": (
        "First token: read + see + prefill",
        "Time to the first answer token: read the video, see it, read the prompt.",
    ),
    "parts": (
        "Read + see + prefill",
        "The first token's time in parts: decoding the video, the vision tower, the language model over the prompt.",
    ),
    "vision": (
        "of it seeing",
        "The vision tower's share of the time to the first token; the more is pruned, the larger it is.",
    ),
    "encoded": (
        "Frames encoded",
        "Frames that the vision tower saw; the others are equal to one of them, pixel by pixel, and share its tokens.",
    ),
    "before_prefill": (
        "If the prefill were free",
        "The ceiling: reading and seeing the video alone. No pruning inside the language model is faster.",
    ),
    "bias_setup": (
        "Once, at first use",
        "Making the black-video bias, which is then kept: in none of the other figures.",
    ),
    "decode": ("Per token", "Mean time of each further token."),
    "total": (
        "Total",
        "First token and the rest of the answer, as if this method had run alone.",
    ),
    "tflops": (
        "FLOPs, paper / exact",
        "By the pruning papers' formula / counted exactly (grouped KV heads, gated MLP, causal attention).",
    ),
    "tower": (
        "of the vision tower",
        "The vision tower's FLOPs over the frames that it encoded, by the same two counts; in neither figure above.",
    ),
    "kv": ("KV cache", "Keys and values left after the prefill."),
    "peak": ("Peak memory", "Accelerator memory at its highest during the prefill, weights included; not on a CPU."),
    "added": ("of it prefill", "What the prefill added to the memory that was in use before it; not on a CPU."),
    "layer_mean": (
        "Mean over layers",
        "Share of the visual tokens that entered a decoder layer, averaged over the layers.",
    ),
}

# What the report's template says; `{...}` is filled in there.
REPORT_PAGE = {
    "title": NAME,
    "question": "Question",
    "answers": "Answers",
    "same": "Same answer as vanilla.",
    "differs": "Differs from vanilla: marked words.",
    "settings": "Settings in force",
    "none": "No method finished.",
    "not_run": "Not run",
    "failed": "Failed",
    "kept": "What each method kept",
    "kept_help": (
        "Dropped patches are dimmed and hatched, those merged into others hatched the other way and bluish; the patch "
        "grid spans the whole frame."
    ),
    "kept_line": "{label}: {kept} tokens of {total} per frame",
    "strip": "Frames with the patches {label} kept",
    "charts": "Charts",
    "layer": CHART_LAYERS_SLIDER,
    "measured": "How the figures were measured",
    "measured_help": (
        "All methods answered one after another on the same device and the same vision features; then their prefills "
        "were timed in rounds, each method once a round, every other round backwards. Speed-up is the median of the "
        "ratios within a round. Stages marked shared were run once; a method's total is as if it had run alone. What "
        "is paid once, at first use, stands next to the figures and in none of them. The FLOPs ratio is what the "
        "arithmetic alone allows."
    ),
    "data": "All data (JSON)",
}


def report_subtitle(video: str, request: Mapping[str, Any], first: Result | None, *, stored: bool) -> list[str]:
    """Return what a report says about its run, in parts; `first` is any of its results."""
    parts = [video, f"retention asked {100 * request['retention']:.1f}%", f"budget matched by {request['match']}"]
    if first is not None:
        parts.append(f"{first.model} on {first.device}, {first.dtype}, {first.attention_backend} attention")
    return [*parts, "stored result, computed earlier"] if stored else parts
