"""The page: layout, and what it is launched with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr
from gradio.route_utils import get_root_url
from gradio.utils import get_upload_folder
from huggingface_hub.constants import HF_HUB_CACHE
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from sharp_demo import strings
from sharp_demo.errors import InputError
from sharp_demo.page.api import Api
from sharp_demo.page.api_examples import NAME, api_markdown
from sharp_demo.page.components import HERE, example_row, plain_text, plot_code
from sharp_demo.page.controls import KNOBS
from sharp_demo.page.examples import Example, example_of
from sharp_demo.page.menu import described, group_css
from sharp_demo.page.runs import HIDDEN, KEEP_S, Controls, Runs, Updates
from sharp_demo.page.tabs import build_tabs
from sharp_demo.page.tabs.gallery import Gallery
from sharp_demo.page.tabs.kiosk import KIOSK_CSS, KIOSK_TYPE_CSS, build_kiosk
from sharp_demo.page.theme import CSS, make_theme
from sharp_demo.pruning.registry import method_class
from sharp_demo.settings import EMBEDDED, Settings
from sharp_demo.web.calls import Calls, parameters_of, refuse_odd_values
from sharp_demo.web.health import Health, leaving_when_lost
from sharp_demo.web.queue import LastPlaces, PageQueue
from sharp_demo.web.routes import Folders, HiddenFolders, OpenRoutes
from sharp_demo.web.server import guards
from sharp_demo.web.uploads import UploadFolder, tidied

if TYPE_CHECKING:
    from sharp_demo.engine.background import AnyEngine

CHECK_WAIT_S = 10.0
NEVER_S = 10**9  # Gradio deletes its files when the server ends; what is too old before goes by a steady clock
SESSIONS = 128  # copies of the page, a fifth of a megabyte each, that Gradio keeps: one for every call of the API
CLIPS = "clips"  # where the examples are served, next to the page


def build_ui(engine: AnyEngine, settings: Settings) -> gr.Blocks:
    """Assemble the page and its API endpoint around an engine; `launch` it with `launch_options`."""
    clips = settings.assets / "clips"
    # Served from where they are: copies in the upload folder would be the first that its quota deletes.
    gr.set_static_paths([clips])
    with gr.Blocks(
        title=strings.NAME, analytics_enabled=False, fill_width=True, delete_cache=(NEVER_S, NEVER_S)
    ) as page:
        queue = PageQueue(page)
        runs = Runs(engine, settings, Path(get_upload_folder()), clips, queue.waiting, queue.unread)
        inputs = runs.inputs
        links = strings.LINKS.format(paper=method_class("sharp").paper)
        gr.Markdown(f"# {strings.NAME}\n{strings.CLAIM} {links}", elem_id="title")
        row = _example_row(inputs.examples)
        with gr.Row(elem_id="main", equal_height=False):
            with gr.Column(scale=1, min_width=300, elem_id="inputs"):
                controls = _inputs(runs)
            with gr.Column(scale=4, min_width=300, elem_id="results"):
                tabs, compare = build_tabs(runs, controls)
        with gr.Accordion(strings.ABOUT_TITLE, open=False, elem_id="about"):
            gr.Markdown(strings.about(described()))
        with gr.Accordion(strings.CITE, open=False, elem_id="cite"):
            gr.Markdown(f"```bibtex\n{strings.CITATION}\n```")
        with gr.Accordion(strings.API, open=False, elem_id="api"):
            api_text = gr.Markdown()
        gallery = Gallery(runs, compare)
        gallery.wire(row)
        if settings.kiosk:
            build_kiosk(runs, gallery)
        Api(runs).build()

        def opened(request: gr.Request) -> Updates:
            values, wrong = inputs.read(dict(request.query_params))
            if wrong:
                gr.Warning(strings.wrong_link(wrong))
            mode = {tabs: gr.Tabs(selected=values.pop("mode"))} if "mode" in values else {}
            base = get_root_url(request.request, request.request.url.path, page.root_path)
            text = api_markdown(page.get_api_info(), base.rstrip("/"))
            # The page holds the first example from the start; a link says all that it wants there.
            first = {} if values or wrong else gallery.opening(request.session_hash)
            values = {"video": None, "question": "", **values} if values or wrong else {}
            given = {inputs.controls[name]: value for name, value in values.items()}
            return {**first, **given, **mode, api_text: text}

        filled = dict.fromkeys([*inputs.controls.values(), *gallery.outputs, tabs, api_text])
        page.load(opened, None, list(filled), **HIDDEN)
        watched = inputs.of(compare.name)
        told = f"(...values) => {{ window.sharpInputs.tell({json.dumps(list(watched))}, values); }}"
        gr.on([one.change for one in watched.values()], None, list(watched.values()), None, js=told, **HIDDEN)
    page.queue(max_size=settings.queue_size)
    return page


def launch_options(page: gr.Blocks, engine: AnyEngine, settings: Settings) -> dict[str, Any]:
    """Return the arguments of the page's `launch` that make the server private, guarded, quiet and offline."""
    queue = PageQueue(page)
    folder = UploadFolder(
        Path(get_upload_folder()),
        int(settings.upload_quota_mb * 1e6),
        int(settings.min_free_mb * 1e6),
        in_use=queue.files,
    )
    health = Health(engine, settings, folder, queue.waiting)
    parameters = parameters_of(page.get_api_info(), NAME)
    allowed = (Path(get_upload_folder()), settings.assets / "clips")
    functions = {index: len(one.inputs) for index, one in page.fns.items()}
    refuse_odd_values(page, NAME, parameters, allowed)
    folders = hidden_folders(settings)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with leaving_when_lost(engine), tidied(folder, KEEP_S):
            yield

    charts = f"const PLOT_CODE = {json.dumps(plot_code())};"
    modes = (HERE / "css" / "modes.css").read_text("utf-8")
    # Gradio puts its own container before every selector of `css`, so what is about the container goes around it.
    large = (HERE / "css" / "stage.css").read_text("utf-8") + (KIOSK_TYPE_CSS if settings.kiosk else "")
    names = ("plots.js", "plotcode.js", "address.js", "inputs.js", "stage.js")
    scripts = [(HERE / "js" / name).read_text("utf-8") for name in names]
    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "theme": make_theme(),
        "css": CSS + modes + group_css("methods") + (KIOSK_CSS if settings.kiosk else ""),
        "head": f"<style>{large}</style>" + "".join(f"<script>{script}</script>" for script in [charts, *scripts]),
        "footer_links": ["api"],
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "strict_cors": True,
        "app_kwargs": {
            "middleware": [
                *guards(settings, folder),
                Middleware(OpenRoutes, known_session=queue.knows, known_event=lambda one: queue.owner(one) is not None),
                Middleware(LastPlaces, waiting=queue.clients, size=settings.queue_size, proxies=settings.proxies),
                Middleware(HiddenFolders, folders=folders),
                Middleware(
                    Calls,
                    name=NAME,
                    parameters=parameters,
                    functions=functions,
                    allowed=allowed,
                    folders=folders,
                    owner=queue.owner,
                ),
            ],
            "routes": [
                health.route(),
                Mount(f"/{CLIPS}", StaticFiles(directory=settings.assets / "clips", check_dir=False)),
            ],
            "lifespan": lifespan,
        },
        "ssr_mode": False,
        "share": False,
        "state_session_capacity": SESSIONS,
        "allowed_paths": [],
        "max_file_size": int(settings.max_upload_mb * 1e6) if settings.uploads else 1,
    }


def hidden_folders(settings: Settings) -> Folders:
    """Return the folders that a visitor could see, by the names that they are given."""
    opened = {"uploads": Path(get_upload_folder()), CLIPS: settings.assets / "clips"}
    others = {"assets": settings.assets, "hub": Path(HF_HUB_CACHE)}
    if settings.model is not None and settings.model_name not in (None, settings.model):
        others[str(settings.model_name)] = Path(settings.model).expanduser()
    return Folders(opened, others)


def _example_row(examples: list[Example]) -> gr.HTML:
    values = [
        {
            "video": {"url": f"{CLIPS}/{quote(example.video.name)}"},
            "question": example.question,
            "note": example.note,
            "short": strings.short(example.question),
        }
        for example in examples
    ]
    return example_row(values, elem_id="examples", visible=bool(examples))


def _inputs(runs: Runs) -> Controls:
    """Lay out the inputs that all modes share; return the comparison's buttons, which stand among them."""
    place = runs.inputs.place
    video = place("video")
    clip_line = plain_text(strings.limits(runs.settings), elem_id="clip-line")
    place("question")
    with gr.Row(elem_id="run-row"):
        controls = Controls.create(strings.RUN)
    for name in ("methods", "retention", "match", "model"):
        place(name)
    with gr.Accordion(strings.ADVANCED, open=False):
        for name in ("frames", "max_new_tokens", "seed", *(f"{method}.{knob}" for method, knob in KNOBS)):
            place(name)

    def check_upload(path: str | None, model: str | None, caller: gr.Request) -> str:
        return clip_text(runs, path, caller.session_hash, model)

    asked = [video, runs.inputs.controls["model"]]
    gr.on([one.change for one in asked], check_upload, asked, clip_line, queue=False, **HIDDEN)
    return controls


def clip_text(runs: Runs, path: str | None, session: str | None, model: str | None = None) -> str:
    """Return one line on the uploaded clip, or what is wrong with it; and whether `model` knows nothing of its kind."""
    if not path:
        return strings.limits(runs.settings)
    runs.visits.of(session).files.add(Path(path))
    if not runs.checks.acquire(timeout=CHECK_WAIT_S):
        return strings.CHECK_BUSY
    try:
        line = strings.clip_line(runs.engine.probe(path))
        own = model in EMBEDDED and example_of(runs.inputs.examples, path) is None
        return f"{line}. {strings.VERDICT['foreign']}" if own else line
    except InputError as error:
        return strings.sentence(str(error))
    finally:
        runs.checks.release()
