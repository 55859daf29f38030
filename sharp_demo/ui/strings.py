"""Every text of the page, in one place."""

from collections.abc import Sequence

from sharp_demo.pruning.method import Method
from sharp_demo.settings import Settings

TITLE = "ShaRP: visual-token pruning, side by side"
NAME = "ShaRP side by side"
CLAIM = (
    "One video, one question, one video LLM. Four ways to throw most of its visual tokens away: "
    "see what each one keeps, whether the answer holds, and what it really saves."
)

VIDEO = "Video"
QUESTION = "Question"
QUESTION_PLACEHOLDER = "What happens in the clip?"
MODEL = "Model"
METHODS = "Methods"
RETENTION = "Visual tokens kept, %"
MATCH = "Budget"
MATCH_INFO = "Same token count for all, or the compute that FastV (K=2) needs at this share"
MATCH_CHOICES = [("same tokens", "tokens"), ("same FLOPs as FastV", "flops")]
FRAMES = "Frames"
FRAMES_DEFAULT = "model default"
ADVANCED = "Advanced"
SEED = "Seed"
MAX_NEW_TOKENS = "Answer length, tokens at most"
RUN = "Run"
STOP = "Stop"
LEAVE = "Leave the queue"
EXAMPLES = "Examples"

TAB_SPEED = "Speed"
TAB_TOKENS = "Tokens over time"
TAB_ATTENTION = "Attention and debiasing"
SPEED_HELP = (
    "Speed-up: vanilla's measured prefill time over the method's, in this run. FLOPs ratio: what the arithmetic alone "
    "allows. Small models and CPUs gain less than 7B models on a GPU."
)
ATTENTION_HELP = (
    "ShaRP subtracts the attention a black video would get at the same positions, so that late frames do not win "
    "by position alone. Dotted lines: segment boundaries."
)
BY_LAYER = "Show attention by layer"
BY_LAYER_BUSY = "Computing the attention of every layer …"
JSON = "Download JSON"
REPORT = "Download HTML report"

IDLE = "Choose an example or upload a clip, ask a question, and press Run."
QUEUED = "Waiting for the model …"
STARTING = "Starting …"
LEFT = "You left the queue; nothing was run."
WAITING = "waiting"
RUNNING = "running"
ANSWERING = "answering"
DONE = "done"
STOPPED = "stopped"
FAILED = "error"
NOT_RUN = "stopped before it began"
STOPPING = "Stopping …"
UNTRAINED = "Untrained model: the answer is meaningless."
INTERNAL = "Something broke on our side; the server's log has the details. Your inputs are kept."
NO_RUN = "Run a comparison first."

NO_VIDEO = "Choose a video first: upload one or pick an example."
NO_METHOD = "Choose at least one method."
NOT_UPLOADED = "The video must be a file uploaded to this server or one of its examples."
NO_URL = "Web addresses are not fetched: upload the video file itself."

ABOUT = """
**What you see.** All methods share one decoding and one vision pass; each column's total is as if it had run alone.
Dropped patches are dimmed and hatched. Use the slider, the arrow keys or the clip's own player to move through the
frames; point at a patch for its scores.
"""


def about(methods: Sequence[type[Method]]) -> str:
    """Return the explanation below the results, with one line per method, as Markdown."""
    lines = [
        f"- **{method.title}**: {method.summary}{f' [Paper]({method.paper})' if method.paper else ''}"
        for method in methods
    ]
    return "\n".join([ABOUT, "**Methods**", "", *lines])


def limits(settings: Settings) -> str:
    """Return the upload limits in one line."""
    return (
        f"Up to {settings.max_upload_mb:g} MB, {settings.max_duration_s:g} s, {settings.max_side} pixels a side; "
        "uploads stay on this machine and are deleted within the hour."
    )


def too_long(limit: int, length: int) -> str:
    return f"The question has {length} characters; at most {limit} are allowed."


def timed_out(seconds: float) -> str:
    return f"Stopped after {seconds:g} s, the limit of one run."


def unknown(kind: str, value: object, options: object) -> str:
    return f"Unknown {kind} {value!r}; choose from {', '.join(map(str, options))}."  # type: ignore[call-overload]


def out_of_range(name: str, value: object, low: float, high: float) -> str:
    return f"{name} is {value}; it must be between {low:g} and {high:g}."
