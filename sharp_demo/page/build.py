"""The page: layout and wiring."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData
from gradio.route_utils import get_root_url
from gradio.utils import get_upload_folder

from sharp_demo import strings
from sharp_demo.engine import Engine
from sharp_demo.page import tabs
from sharp_demo.page.api_examples import api_markdown
from sharp_demo.page.board import Board
from sharp_demo.page.callbacks import CHARTS, Callbacks
from sharp_demo.page.controls import advanced_controls
from sharp_demo.page.inputs import Example, clip_input, frame_choices, load_examples
from sharp_demo.page.menu import group_css, grouped, method_choices
from sharp_demo.page.tabs import kiosk
from sharp_demo.page.tabs.kiosk import build_kiosk
from sharp_demo.page.tabs.parts import HIDDEN, MODEL, PHASE
from sharp_demo.page.theme import CSS, make_theme
from sharp_demo.page.tokens import example_row, plain_text, token_columns
from sharp_demo.pruning.registry import list_methods
from sharp_demo.settings import Settings
from sharp_demo.web.health import Health, leaving_when_lost
from sharp_demo.web.server import guards
from sharp_demo.web.uploads import UploadFolder

HERE = Path(__file__).parent
KEEP_FILES_S = 3600
SESSIONS = 64  # each keeps its last comparison, about a megabyte
# A download starts when its hidden button gets the file: the file is only written when someone asks for it.
CLICK = "() => setTimeout(() => document.querySelector('#{id}')?.click(), 150)"

PICTURE = "() => { window.dispatchEvent(new Event('sharp:picture')); }"
# Browsers give pages that are served over plain HTTP from another machine no clipboard.
COPY = """() => {
  (navigator.clipboard?.writeText(location.href) ?? Promise.reject()).catch(() => prompt("", location.href));
}"""


def build_ui(engine: Engine, settings: Settings) -> gr.Blocks:
    """Assemble the page and its API endpoint around an engine; `launch` it with `launch_options`."""
    examples = load_examples(settings)
    callbacks = Callbacks(
        engine,
        settings,
        Path(get_upload_folder()),
        settings.assets / "clips",
        waiting=lambda: len(page._queue),
        unread=lambda session: unread(page, session),
    )
    # Served from where they are: copies in the upload folder would be the first that its quota deletes.
    gr.set_static_paths([settings.assets / "clips"])
    with gr.Blocks(
        title=strings.TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, KEEP_FILES_S)
    ) as page:
        gr.Markdown(f"# {strings.NAME}\n{strings.CLAIM}", elem_id="title")
        row = _example_row(examples)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="inputs"):
                video, clip_line, inputs, run, stop, leave = _inputs(engine, settings)
            with gr.Column(scale=4, min_width=300), gr.Tabs(elem_id="modes", overflow_behavior="wrap") as mode_tabs:
                with gr.Tab(strings.MODE_COMPARE, id="compare") as compare:
                    board = token_columns(Board.idle(settings.methods).value(), elem_id="columns")
                    outputs = _results()
                tabs.when_opened(compare, "compare")
                choices = tabs.build_modes(callbacks, inputs)
        gr.Markdown(strings.about(grouped()))
        with gr.Accordion(strings.API, open=False, elem_id="api"):
            api_text = gr.Markdown()
        _wire(callbacks, examples, row, video, clip_line, inputs, (run, stop, leave), board, outputs)
        _api(callbacks, engine, settings)

        def opened(request: gr.Request) -> list[Any]:
            base = get_root_url(request.request, request.request.url.path, page.root_path)
            *values, mode, plan, steps = callbacks.open_link(request)
            tab = gr.Tabs(selected=mode) if isinstance(mode, str) else mode
            return [*values, tab, plan, steps, api_markdown(page.get_api_info(), base.rstrip("/"))]

        page.load(opened, None, [*inputs, mode_tabs, *choices, api_text], **HIDDEN)
    page.queue(max_size=settings.queue_size)
    return page


def launch_options(page: gr.Blocks, engine: Engine, settings: Settings) -> dict[str, Any]:
    """Return the arguments of the page's `launch` that make the server private, guarded, quiet and offline."""
    folder = UploadFolder(
        Path(get_upload_folder()),
        int(settings.upload_quota_mb * 1e6),
        int(settings.min_free_mb * 1e6),
        in_use=lambda: files_in_use(page),
    )
    health = Health(engine, settings, folder, waiting=lambda: len(page._queue))

    def lifespan(_: Any) -> AbstractAsyncContextManager[None]:
        return leaving_when_lost(engine)

    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "theme": make_theme(),
        "css": CSS + tabs.CSS + group_css("methods") + (kiosk.CSS if settings.kiosk else ""),
        "head": "".join(
            f"<script>{(HERE / 'js' / name).read_text('utf-8')}</script>" for name in ("plots.js", "address.js")
        ),
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "strict_cors": True,
        "app_kwargs": {
            "middleware": guards(settings, folder),
            "routes": [health.route()],
            "lifespan": lifespan,
        },
        "ssr_mode": False,
        "share": False,
        "state_session_capacity": SESSIONS,
        "allowed_paths": [],
        "max_file_size": int(settings.max_upload_mb * 1e6) if settings.uploads else 1,
    }


def unread(page: gr.Blocks, session: str) -> int:
    """Return how many messages wait for a session to take them; 0 where there is no such session (any more)."""
    messages = page._queue.pending_messages_per_session.get(session)
    return 0 if messages is None else messages.qsize()


def files_in_use(page: gr.Blocks) -> set[Path]:
    """Return the files that the requests name which wait in the page's queue or run. Any thread may ask."""
    queue = page._queue
    waiting = [event for one in list(queue.event_queue_per_concurrency_id.values()) for event in list(one.queue)]
    running = [event for job in list(queue.active_jobs) for event in job or ()]
    asked = [event.data.data for event in (*waiting, *running) if event.data is not None]
    return {Path(path) for path in kiosk.paths_in(asked)}


def _example_row(examples: list[Example]) -> gr.HTML:
    values = [
        {
            "video": FileData(path=str(example.video), orig_name=example.video.name).model_dump(),
            "question": example.question,
            "note": example.note,
        }
        for example in examples
    ]
    return example_row(values, elem_id="examples", visible=bool(examples))


def _inputs(engine: Engine, settings: Settings) -> tuple[Any, ...]:
    video = clip_input(
        label=strings.VIDEO,
        interactive=settings.uploads,
        sources=["upload", "webcam"] if settings.webcam else ["upload"],
        height=280,
        elem_id="clip",
    )
    clip_line = plain_text(strings.limits(settings), elem_id="clip-line")
    question = gr.Textbox(
        label=strings.QUESTION,
        placeholder=strings.QUESTION_PLACEHOLDER,
        max_length=settings.max_question_chars,
        lines=2,
        elem_id="question",
    )
    with gr.Row(elem_id="run-row"):
        run = gr.Button(strings.RUN, variant="primary", min_width=80, elem_id="run")
        stop = gr.Button(strings.STOP, variant="stop", interactive=False, min_width=80, elem_id="stop")
        leave = gr.Button(strings.LEAVE, visible=False, min_width=80, elem_id="leave")
    methods = gr.CheckboxGroup(
        method_choices(),
        value=list(settings.methods),
        label=strings.METHODS,
        elem_id="methods",
    )
    retention = gr.Slider(2, 100, value=20, step=1, label=strings.RETENTION, elem_id="retention")
    match = gr.Radio(strings.MATCH_CHOICES, value="tokens", label=strings.MATCH, info=strings.MATCH_INFO)
    model = gr.Dropdown(engine.models(), value=engine.default_model, label=strings.MODEL, elem_id="model")
    with gr.Accordion(strings.ADVANCED, open=False):
        choices = [(str(count) if count else strings.FRAMES_DEFAULT, count) for count in frame_choices(settings)]
        frames = gr.Dropdown(choices, value=0, label=strings.FRAMES)
        max_new = gr.Slider(
            1,
            settings.max_new_tokens,
            value=min(64, settings.max_new_tokens),
            step=1,
            label=strings.MAX_NEW_TOKENS,
            elem_id="max-new",
        )
        seed = gr.Number(0, label=strings.SEED, precision=0, minimum=0, maximum=2**31 - 1)
        knobs = advanced_controls()
    inputs = [video, question, model, methods, retention, match, frames, max_new, seed, *knobs]
    return video, clip_line, inputs, run, stop, leave


def _results() -> dict[str, Any]:
    with gr.Column(visible=False) as section:
        gr.Markdown(strings.SPEED_HELP)
        with gr.Row():
            speed, latency = (gr.Plot(show_label=False, min_width=300) for _ in range(2))
        gr.Markdown(strings.ATTENTION_HELP)
        with gr.Row():
            kept, attention = (gr.Plot(show_label=False, min_width=300) for _ in range(2))
        by_layer = gr.Button(strings.BY_LAYER, size="sm", elem_id="by-layer")
        # A slider of the browser's own: the one that plotly draws cannot be moved by keyboard.
        layer = gr.Slider(0, 1, step=1, visible=False, label=strings.CHART_LAYERS_SLIDER, elem_id="layer")
        with gr.Row():
            layers = gr.Plot(visible=False, show_label=False, min_width=300, elem_id="layers")
            layer_map = gr.Plot(visible=False, show_label=False, min_width=300, elem_id="layer-map")
        gr.Markdown(strings.ACCURACY_HELP)
        with gr.Row():
            depth, accuracy = (gr.Plot(show_label=False, min_width=300) for _ in range(2))
        with gr.Row():
            save_json = gr.Button(strings.JSON, size="sm", elem_id="save-json")
            save_report = gr.Button(strings.REPORT, size="sm", elem_id="save-report")
            picture = gr.Button(strings.PICTURE, size="sm", elem_id="save-picture")
            link = gr.Button(strings.LINK, size="sm", elem_id="copy-link")
        picture.click(None, None, None, js=PICTURE, **HIDDEN)
        link.click(lambda: gr.Info(strings.LINK_COPIED), None, None, js=COPY, **HIDDEN)
        json_file = gr.DownloadButton(visible="hidden", elem_id="json-file")
        report_file = gr.DownloadButton(visible="hidden", elem_id="report-file")
    return {
        "charts": [speed, latency, kept, attention, depth, accuracy],
        "section": section,
        "layers": [layer, layers, layer_map],
        "finished": gr.State(None, time_to_live=KEEP_FILES_S),
        "by_layer": by_layer,
        "save_json": (save_json, json_file),
        "save_report": (save_report, report_file),
    }


def _wire(
    callbacks: Callbacks,
    examples: list[Example],
    row: gr.HTML,
    video: gr.Video,
    clip_line: gr.HTML,
    inputs: list[Any],
    buttons: tuple[gr.Button, gr.Button, gr.Button],
    board: gr.HTML,
    outputs: dict[str, Any],
) -> None:
    run, stop, leave = buttons
    finished = outputs["finished"]
    shown = [board, *outputs["charts"], outputs["section"], *outputs["layers"], finished, *buttons]
    assert len(outputs["charts"]) == len(CHARTS)

    def start(request: gr.Request, *values: Any) -> Any:
        yield from callbacks.begin(*values, request)

    def stream(request: gr.Request, *values: Any) -> Any:
        yield from callbacks.run(*values, request)

    def choose(event: gr.EventData) -> tuple[str, str, Any]:
        example = examples[event.index]
        return str(example.video), example.question, callbacks.engine.example_model or gr.skip()

    begun = run.click(start, inputs, [board, *buttons], queue=False, **HIDDEN)
    running = begun.success(stream, inputs, shown, **MODEL)
    running.failure(callbacks.refused, board, [board, *buttons], queue=False, js=PHASE, **HIDDEN)
    stop.click(callbacks.stop, None, stop, queue=False, **HIDDEN)
    leave.click(callbacks.leave, None, [board, *buttons], queue=False, cancels=[running], **HIDDEN)
    if callbacks.settings.kiosk:
        files = [file for name in ("save_json", "save_report") for file in outputs[name][1:]]
        build_kiosk(callbacks, examples, row, inputs[:3], shown, files)
    else:
        row.select(choose, None, inputs[:3], queue=False, **HIDDEN)
    video.change(callbacks.check_upload, video, clip_line, queue=False, **HIDDEN)
    outputs["by_layer"].click(
        callbacks.attention, finished, [*outputs["layers"], finished, outputs["by_layer"]], **MODEL
    )
    layer, layers, _ = outputs["layers"]
    layer.input(callbacks.layer, [finished, layer], layers, queue=False, trigger_mode="always_last", **HIDDEN)
    for name, write in (("save_json", callbacks.save_json), ("save_report", callbacks.save_report)):
        button, file = outputs[name]
        button.click(write, finished, file, queue=False, **HIDDEN).success(
            None, None, None, js=CLICK.replace("{id}", file.elem_id), **HIDDEN
        )


def _api(callbacks: Callbacks, engine: Engine, settings: Settings) -> None:
    """Add the endpoint `compare` with components of its own, so that the page may change without breaking clients."""
    with gr.Column(visible=False):
        inputs = [
            clip_input(label="video", sources=["upload"]),
            gr.Textbox(label="question", max_length=settings.max_question_chars),
            gr.CheckboxGroup(list_methods(), value=list(settings.methods), label="methods"),
            gr.Number(0.2, label="retention"),
            gr.Radio(["tokens", "flops"], value="tokens", label="match"),
            gr.Number(0, precision=0, label="frames"),
            gr.Dropdown(engine.models(), value=engine.default_model, label="model"),
        ]
        result = gr.JSON(label="comparison")
        gr.Button().click(
            callbacks.compare,
            inputs,
            result,
            api_name="compare",
            concurrency_id="model",
            concurrency_limit=1,
        )
