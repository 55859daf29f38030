"""What a call of the API may say, checked before Gradio reads it: every refusal is one line.

`Calls` is the middleware in front of the routes that take calls, `refuse_odd_values` the check behind the queue:
a client that waits in the queue gets its refusal as the event's error, all others get 422 with `detail`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import Error
from starlette._utils import get_route_path
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharp_demo import strings
from sharp_demo.web.routes import CALLS, PREFIX, Folders, is_address

log = logging.getLogger(__name__)

EVENTS = ("queue/join", "run/predict", "api/predict")  # by index; the page sends what does not wait to run/predict
DEEPEST = 64  # levels of JSON; a page's own events have about ten
LARGEST = 1e15  # of a number
LONGEST = 200  # characters of a name: a method, a model
SESSION = re.compile(r"[\w.-]{1,200}", re.ASCII)  # Gradio reads more into other characters
# What a parameter takes, by its component; the last is whether null stands for "not given".
FILE, TEXT, NAME, NAMES, NUMBER = "file", "text", "name", "names", "number"
KINDS = {
    "Video": (FILE, True),
    "Textbox": (TEXT, True),
    "Checkboxgroup": (NAMES, False),
    "Number": (NUMBER, False),
    "Radio": (NAME, False),
    "Dropdown": (NAME, True),
}
OPTIONAL = "frames"  # the one number that null stands for


class CallError(ValueError):
    """A call is refused; the message is for the caller."""


class Refusal(Error):
    """Tells a caller in one line that the values are at fault; by HTTP it is 422, all other errors are 500."""

    def __init__(self, message: str) -> None:
        super().__init__(message, title=strings.REFUSED_TITLE, print_exception=False)


@dataclass(frozen=True)
class Parameter:
    """One parameter of an endpoint: its name, its kind, and whether it may be null or left out."""

    name: str
    kind: str
    nullable: bool
    has_default: bool = False


def parameters_of(api: Mapping[str, Any], name: str) -> tuple[Parameter, ...]:
    """Return the parameters of a named endpoint from `Blocks.get_api_info()`."""
    found = []
    for one in api["named_endpoints"][f"/{name}"]["parameters"]:
        kind, nullable = KINDS[one["component"]]
        called = one["parameter_name"]
        found.append(Parameter(called, kind, nullable or called == OPTIONAL, bool(one["parameter_has_default"])))
    return tuple(found)


# -- checks: each raises CallError -----------------------------------------------------------------------------------


def parsed(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; no NaN, no infinity, not nested too deep, text that is Unicode."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise CallError(strings.too_deep(DEEPEST)) from None
    except CallError:
        raise
    except ValueError:  # UnicodeDecodeError is one
        raise CallError(strings.NO_JSON) from None
    if not isinstance(value, dict):
        raise CallError(strings.NO_JSON)
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        for one in level:
            _check_atom(one)
        level = [part for one in level for part in _parts(one)]
        if not level:
            return value
    raise CallError(strings.too_deep(DEEPEST))


def _no_constant(name: str) -> None:
    raise CallError(strings.no_number(name))


def _parts(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else ()


def _check_atom(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise CallError(strings.no_number(strings.BEYOND_BOUNDS))
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise CallError(strings.NO_JSON) from None


def check_envelope(call: Mapping[str, Any], functions: Mapping[int, int] | None = None) -> None:
    """Check what stands around the values; with `functions`, index -> number of inputs, also which one is called."""
    if not isinstance(call.get("data"), list):
        raise CallError(strings.wrong_value("data", strings.A_LIST, call.get("data")))
    session = call.get("session_hash")
    if session is not None:
        check_session(session)
    for name in ("fn_index", "trigger_id"):
        if call.get(name) is not None and type(call[name]) is not int:
            raise CallError(strings.wrong_value(name, strings.A_WHOLE_NUMBER, call[name]))
    for name in ("event_id", "oauth_token"):
        if call.get(name) is not None and not isinstance(call[name], str):
            raise CallError(strings.wrong_value(name, "text", call[name]))
    for name in ("batched", "simple_format"):
        if call.get(name) not in (None, False):
            raise CallError(strings.wrong_value(name, "false", call[name]))
    if functions is not None:
        if session is None:
            raise CallError(strings.wrong_value("session_hash", strings.A_SHORT_TEXT, session))
        if call.get("fn_index") not in functions:
            raise CallError(strings.NO_FUNCTION)


def check_session(session: Any) -> None:
    if not isinstance(session, str) or not SESSION.fullmatch(session):
        raise CallError(strings.wrong_value("session_hash", strings.A_SHORT_TEXT, session))


def check_cancel(call: Mapping[str, Any], owner: Callable[[str], str | None]) -> None:
    """Check that a session cancels nothing but its own events. `owner`: the session of an event, None: of nobody."""
    check_session(call.get("session_hash"))
    if type(call.get("fn_index")) is not int:
        raise CallError(strings.wrong_value("fn_index", strings.A_WHOLE_NUMBER, call.get("fn_index")))
    check_event(call)
    if owner(call["event_id"]) not in (None, call["session_hash"]):
        raise CallError(strings.NO_EVENT)


def check_event(call: Mapping[str, Any]) -> None:
    if not isinstance(call.get("event_id"), str):
        raise CallError(strings.wrong_value("event_id", "text", call.get("event_id")))


def check_values(parameters: Sequence[Parameter], values: Sequence[Any], allowed: Sequence[Path]) -> None:
    """Check the values of an endpoint's parameters in their order."""
    if len(values) != len(parameters):
        raise CallError(strings.wrong_count([one.name for one in parameters], len(values)))
    for parameter, value in zip(parameters, values, strict=True):
        check_value(parameter, value, allowed)


def check_value(parameter: Parameter, value: Any, allowed: Sequence[Path]) -> None:
    """Check one value's kind; its range is for `Inputs.check`."""
    name, kind = parameter.name, parameter.kind
    if value is None and parameter.nullable:
        return
    if kind == FILE:
        if isinstance(value, dict) and "path" not in value and isinstance(value.get(name), dict):
            raise CallError(strings.old_form(name))
        if isinstance(value, dict) and "path" not in value and "url" in value:
            raise CallError(strings.NO_URL)
        if not isinstance(value, dict) or not is_file_data(value):
            raise CallError(strings.wrong_value(name, strings.A_FILE, value))
        check_path(value["path"], allowed)
    elif kind == NAMES:
        if not isinstance(value, list) or len(value) > LONGEST or not all(map(_is_name, value)):
            raise CallError(strings.wrong_value(name, strings.NAMES_LIST, value))
    elif kind == NUMBER:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise CallError(strings.wrong_value(name, strings.A_NUMBER, value))
    elif kind == NAME:
        if not _is_name(value):
            raise CallError(strings.wrong_value(name, strings.A_NAME, value))
    elif not isinstance(value, str):
        raise CallError(strings.wrong_value(name, "text", value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def is_file_data(value: Mapping[str, Any]) -> bool:
    """Return True for a file as Gradio's clients send it."""
    meta = value.get("meta")
    return isinstance(value.get("path"), str) and isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"


def check_path(path: str, allowed: Sequence[Path]) -> None:
    """Refuse addresses, and files that are in no `allowed` folder or are gone."""
    if is_address(path):
        raise CallError(strings.NO_URL)
    try:
        resolved = Path(path).resolve()
        inside = any(resolved.is_relative_to(folder.resolve()) for folder in allowed)
        there = inside and resolved.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, links in a circle
        raise CallError(strings.NOT_UPLOADED) from None
    if not inside:
        raise CallError(strings.NOT_UPLOADED)
    if not there:
        raise CallError(strings.UPLOAD_GONE)


def files_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every file that a JSON value names."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict) and is_file_data(one):
            yield one
        waiting.extend(_parts(one))


# -- the two places where calls are checked --------------------------------------------------------------------------


class Calls:
    """Refuses calls that are no JSON, name no endpoint or have values of the wrong kind with 422 and one line.

    `functions` : number of inputs of every event by its index. `parameters` : those of the endpoint `name`. `owner` :
    the session of an event in the queue, None for any other. What passes is passed on as it was read here, with files
    by their own paths.
    """

    def __init__(
        self,
        app: ASGIApp,
        name: str,
        parameters: Sequence[Parameter],
        functions: Mapping[int, int],
        allowed: Sequence[Path],
        folders: Folders,
        owner: Callable[[str], str | None],
    ) -> None:
        self.app, self.name, self.parameters = app, name, parameters
        self.functions, self.allowed, self.folders, self.owner = functions, allowed, folders, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = route_of(scope)
        if route is None:
            await self.app(scope, receive, send)
            return
        body = await whole_body(receive)
        if body is None:  # hung up
            return
        try:
            call = self.read(body)
            self.check(route, call)
        except CallError as error:
            await JSONResponse({"detail": str(error)}, 422)(scope, receive, send)
            return
        answer = Answer(scope, receive, send) if route.startswith(("run/", "api/")) else send
        await self.app(scope, Replay(json.dumps(call).encode(), receive), answer)

    def read(self, body: bytes) -> dict[str, Any]:
        """Return the call of a body. Raises CallError."""
        call = parsed(body)
        for file in files_in(call):
            file["path"] = self.folders.local(file["path"])
        return call

    def check(self, route: str, call: dict[str, Any]) -> None:
        """Check a call that is sent to a route below `PREFIX`. Raises CallError."""
        if route == "cancel":
            check_cancel(call, self.owner)
            return
        if route == "reset":
            check_event(call)
            return
        if route in EVENTS:
            check_envelope(call, self.functions)
            return  # values are checked behind the route: the page and gradio_client read refusals there
        kind, _, name = route.rpartition("/")
        if name != self.name:
            raise CallError(strings.unknown_endpoint(self.name))
        if kind == "call/v2":
            call.pop("oauth_token", None)
            self.check_named(call)
            return
        check_envelope(call)
        if call.get("fn_index") is not None and kind != "call":
            raise CallError(strings.unknown_endpoint(self.name))
        check_values(self.parameters, call["data"], self.allowed)

    def check_named(self, values: Mapping[str, Any]) -> None:
        """Check values by name. Raises CallError."""
        known = {one.name: one for one in self.parameters}
        odd = [name for name in values if name not in known]
        missing = [one.name for one in self.parameters if not one.has_default and one.name not in values]
        if odd or missing:
            raise CallError(strings.wrong_names(list(known), odd, missing))
        for name, value in values.items():
            check_value(known[name], value, self.allowed)


def route_of(scope: Scope) -> str | None:
    """Return the route below `PREFIX` of a request that calls something; None for all others."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path = get_route_path(scope).rstrip("/")
    if not path.startswith(PREFIX):
        return None
    route = path.removeprefix(PREFIX)
    return route if route in ("queue/join", "cancel", "reset") or route.startswith(CALLS) else None


async def whole_body(receive: Receive) -> bytes | None:
    """Return a request's body, which `BodyLimit` bounds; None when the client hung up."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


class Replay:
    """Gives a body that was read once more, and then what else comes."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is None:
            return await self.receive()
        body, self.body = self.body, None
        return {"type": "http.request", "body": body, "more_body": False}


class Answer:
    """Sends what a direct call is answered; a `Refusal`, which Gradio answers with 500 as all errors, with 422."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self.failed: Message | None = None  # the beginning of an answer with 500, held back
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 500:
            self.failed = message
        elif self.failed is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                await self.end(self.failed)

    async def end(self, failed: Message) -> None:
        line = refused(self.body)
        if line is None:
            await self.send(failed)
            await self.send({"type": "http.response.body", "body": self.body})
        else:
            await JSONResponse({"error": line}, 422)(self.scope, self.receive, self.send)


def refused(body: bytes) -> str | None:
    """Return the line of a `Refusal` that Gradio wrote; None for anything else."""
    try:
        told = json.loads(body)
    except ValueError:
        return None
    return told.get("error") if isinstance(told, dict) and told.get("title") == strings.REFUSED_TITLE else None


def refuse_odd_values(page: gr.Blocks, name: str, parameters: Sequence[Parameter], allowed: Sequence[Path]) -> None:
    """Make a page refuse an event's values that are not what its inputs take by one line instead of a traceback."""
    read = page.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False) -> list[Any]:
        try:
            if block_fn.api_name == name:
                check_values(parameters, inputs, allowed)
            else:
                for file in files_in(inputs):
                    check_path(file["path"], allowed)
            return await read(block_fn, inputs, state, explicit_call)
        except Error as error:
            raise Refusal(error.message) from None
        except OSError:
            raise
        except CallError as error:
            raise Refusal(str(error)) from None
        except Exception as error:
            log.info("an event's values were refused: %s", type(error).__name__)
            raise Refusal(strings.ODD_VALUES) from None

    page.preprocess_data = checked
