"""Which of Gradio's routes are open, and by which names the server's folders are known outside.

Gradio serves more than this page uses: a route that runs ffmpeg on what it is sent, one that fetches addresses, an
editor of the app's source. What is not listed here does not exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qs, quote

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharp_demo import strings
from sharp_demo.web.server import SAFE_METHODS

PREFIX = "/gradio_api/"
FILE = f"{PREFIX}file="
CALLS = ("call/", "run/", "api/")  # what follows is the endpoint's name
CHANGING = ("queue/join", "upload", "cancel", "reset")
READING = (
    *("info", "openapi.json", "theme.css", "startup-events", "app_id", "user", "token", "login_check"),
    *("queue/data", "queue/status", "upload_progress"),
)
STREAM, EVENT, PULSE = "queue/data", "call/", "heartbeat/"
TEXTS = ("text/html", "text/plain", "text/event-stream", "application/json")


class OpenRoutes:
    """Answers 404 where the page and its clients have no business.

    `known_session`, `known_event` : whether the queue has messages for one. Gradio raises inside of the stream for
    one that it does not know.
    """

    def __init__(self, app: ASGIApp, known_session: Callable[[str], bool], known_event: Callable[[str], bool]) -> None:
        self.app, self.known_session, self.known_event = app, known_session, known_event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.refusal(scope) if scope["type"] == "http" else None
        await (answer or self.app)(scope, receive, send)

    def refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that goes no further; None for those that do."""
        path, reading = get_route_path(scope), scope["method"] in SAFE_METHODS
        if not path.startswith(PREFIX):
            return None if reading else not_found()
        route = path.removeprefix(PREFIX).rstrip("/")
        if not reading:
            return None if route in CHANGING or route.startswith(CALLS) else not_found()
        if route.startswith("file="):
            return not_found(strings.NO_URL) if is_address(path.removeprefix(FILE)) else None
        if route == STREAM:
            session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
            return None if self.known_session(session) else lost_session()
        if route.startswith(EVENT):
            return None if self.known_event(route.rpartition("/")[2]) else not_found(strings.NO_EVENT)
        return None if route in READING or route.startswith(PULSE) else not_found()


def not_found(line: str = strings.NO_ROUTE) -> Response:
    return JSONResponse({"detail": line}, 404)


def lost_session() -> Response:
    """Return what tells a page that the server does not know it, in the words that Gradio's script reads."""
    told = {"msg": "unexpected_error", "message": strings.NO_SESSION, "success": False, "session_not_found": True}
    return Response(f"data: {json.dumps(told)}\n\n", media_type="text/event-stream")


def is_address(path: str) -> bool:
    """Return True for what names another machine instead of a file."""
    return "://" in path or path.lower().startswith(("//", "http:", "https:", "ftp:", "file:", "data:"))


class Folders:
    """Folders of the server by the names under which the outside knows them: name -> folder.

    In texts that leave, a folder's path becomes its name. What lies in the `open` ones may also be asked for by name.
    """

    def __init__(self, open: Mapping[str, Path], others: Mapping[str, Path]) -> None:
        self.open = dict(open)
        written = {
            form.encode(): name.encode()
            for name, folder in {**open, **others}.items()
            for place in (folder.absolute(), folder.resolve())
            for form in (str(place), quote(str(place)), json.dumps(str(place))[1:-1])
        }
        self._written = dict(sorted(written.items(), key=lambda one: -len(one[0])))  # a folder before those around it

    def hide(self, text: bytes) -> bytes:
        """Return a text with names in place of paths."""
        for path, name in self._written.items():
            if path in text:
                text = renamed(text, path, name)
        return text

    def local(self, path: str) -> str:
        """Return the path of what is named from outside."""
        name, _, rest = path.partition("/")
        return f"{self.open[name]}/{rest}" if rest and name in self.open else path


def renamed(text: bytes, path: bytes, name: bytes) -> bytes:
    """Return the text with `name` where the path stands as a whole: `/data` is not in `/data2`."""
    pieces = text.split(path)
    parts = pieces[:1]
    for before, after in pairwise(pieces):
        inside = is_word(before[-1:]) or is_word(after[:1])
        parts += [path if inside else name, after]
    return b"".join(parts)


def is_word(letter: bytes) -> bool:
    return letter.isalnum() or letter in (b"_", b"-")


class HiddenFolders:
    """Tells nobody where the server's files lie: applies `folders` to what is answered and to `/file=` requests.

    A text is looked at as it is sent, message by message; Gradio sends a whole event or body in one.
    """

    def __init__(self, app: ASGIApp, folders: Folders) -> None:
        self.app, self.folders = app, folders

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        before, found, file = scope["path"].partition(FILE)
        if found:
            scope = {**scope, "path": f"{before}{FILE}{self.folders.local(file)}"}
            await self.app(scope, receive, send)
            return
        is_text = False

        async def send_hidden(message: Message) -> None:
            nonlocal is_text
            if message["type"] == "http.response.start":
                is_text = Headers(scope=message).get("content-type", "").startswith(TEXTS)
                if is_text:
                    del MutableHeaders(scope=message)["content-length"]
            elif is_text and message.get("body"):
                message = {**message, "body": self.folders.hide(message["body"])}
            await send(message)

        await self.app(scope, receive, send_hidden)
