"""What the web server refuses before Gradio sees it, and what it adds to every answer.

Each class is an ASGI middleware for one rule; `guards` puts them in order. docs/security.md says what each defends.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from anyio import CancelScope, current_time, fail_after, to_thread
from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharp_demo import strings
from sharp_demo.settings import Settings
from sharp_demo.web.uploads import UploadFolder

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_BODY = 4 << 20  # of everything but uploads: inputs of one event, as JSON
FORM_EXTRA = 1 << 20  # what a form adds around a file
UPLOAD = "/gradio_api/upload"  # the one route that takes files
OPEN_UPLOADS = 40  # of one address at a time, behind which may be a whole audience
SILENCE_S = 15.0  # without a byte of an upload
YIELD_S = 1.0  # without a byte of an upload, when another one of its address needs the place
KNOWN_CLIENTS = 10_000
# Gradio runs inline scripts and modules from blobs, compiles templates of gr.HTML, shows uploads as blobs.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors {}"
)
PERMISSIONS = "camera=(self), microphone=(self), geolocation=(), payment=(), usb=()"


def guards(settings: Settings, folder: UploadFolder) -> list[Middleware]:
    """Return the middleware of a deployment, outermost first."""
    return [
        Middleware(SecurityHeaders, frame_ancestors=settings.framing),
        Middleware(TrustedHosts, names=settings.host_names),
        Middleware(SameOrigin),
        Middleware(RateLimit, per_minute=settings.requests_per_minute, proxies=settings.proxies),
        Middleware(BodyLimit, upload_bytes=int(settings.max_upload_mb * 1e6), folder=folder, proxies=settings.proxies),
    ]


def is_http(scope: Scope) -> bool:
    return scope["type"] == "http"


def changes_something(scope: Scope) -> bool:
    """Return True for a request that is more than reading."""
    return is_http(scope) and scope["method"] not in SAFE_METHODS


def refusal(scope: Scope, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """Return an answer whose text the page shows: Gradio reads `detail` of events and the plain text of uploads."""
    if is_upload(scope):
        return PlainTextResponse(text, status, headers)
    return JSONResponse({"detail": text}, status, headers)


def is_upload(scope: Scope) -> bool:
    """Return True for the route that takes files; below a proxy's root path as well."""
    return get_route_path(scope).rstrip("/") == UPLOAD


class SecurityHeaders:
    """Adds the headers by which browsers restrict what a page may do and who may frame it."""

    def __init__(self, app: ASGIApp, frame_ancestors: str) -> None:
        self.app = app
        self.headers = {
            "Content-Security-Policy": CONTENT_POLICY.format(frame_ancestors),
            "X-Content-Type-Options": "nosniff",
            # Not no-referrer, with which browsers would hide the origin that `SameOrigin` looks at.
            "Referrer-Policy": "same-origin",
            "Permissions-Policy": PERMISSIONS,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers if is_http(scope) else send)


class TrustedHosts:
    """Refuses requests for a name that is not this server's, with 400: the defence against DNS rebinding.

    Loopback names and bare addresses pass: no foreign page can be served under them. `names` None: any name.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.names is not None and scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            # Gradio builds its addresses from the forwarded name where there is one.
            asked = [headers.get("host", ""), *headers.getlist("x-forwarded-host")]
            foreign = next((host for host in asked if not is_trusted(host, self.names)), None)
            if foreign is not None:
                text = strings.foreign_host(host_name(foreign))
                await PlainTextResponse(text, 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def is_trusted(host: str, names: Collection[str]) -> bool:
    """Return True for loopback names, addresses, and the names given; `*.example.org` stands for its subdomains."""
    name = host_name(host)
    if name == "localhost" or name.endswith(".localhost") or is_address(name):
        return True
    return any(name == known or (known.startswith("*.") and name.endswith(known[1:])) for known in names)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class SameOrigin:
    """Refuses what a page of another origin sends, reading included, with 403.

    Gradio's own CORS check leaves multipart uploads open, with which any page could fill a local demo's disk, and
    lets a page on any port of localhost read answers. Clients that are no browsers send no Origin and pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if is_http(scope):
            headers = Headers(scope=scope)
            if is_foreign(headers.get("origin"), headers.get("x-forwarded-host") or headers.get("host", "")):
                await refusal(scope, 403, strings.FOREIGN_ORIGIN)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_foreign(origin: str | None, host: str) -> bool:
    """Return True when a browser says that a page of another host sent the request."""
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


class RateLimit:
    """Limits what one client starts (uploads, runs, clicks) to `per_minute` in a minute, all at once or spread; 429.

    A token bucket per client address. 0: no limit.
    """

    def __init__(
        self, app: ASGIApp, per_minute: int, proxies: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.app, self.per_minute, self.proxies, self.clock = app, per_minute, proxies, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens left, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.per_minute and changes_something(scope):
            wait = self.take(client_of(scope, self.proxies))
            if wait > 0:
                seconds = math.ceil(wait)
                headers = {"Retry-After": str(seconds)}
                await refusal(scope, 429, strings.too_often(self.per_minute, seconds), headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def take(self, client: str) -> float:
        """Count one request; return the seconds until the client may send the next one, 0 when it may now."""
        now = self.clock()
        left, then = self._buckets.pop(client, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * self.per_minute / 60)
        wait = max(0.0, (1 - left) * 60 / self.per_minute)
        self._buckets[client] = (left if wait else left - 1, now)
        if len(self._buckets) > KNOWN_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


def client_of(scope: Scope, proxies: int) -> str:
    """Return the client's address: the peer's, or the one that the outermost of `proxies` own proxies saw.

    Entries of X-Forwarded-For further left are the client's own words.
    """
    forwarded = [part.strip() for line in Headers(scope=scope).getlist("x-forwarded-for") for part in line.split(",")]
    if proxies and len(forwarded) >= proxies:
        return forwarded[-proxies]
    return scope["client"][0] if scope.get("client") else ""


class BodyLimit:
    """Refuses bodies that are too large (413) or do not say how large (411), and uploads that find no room (507).

    Room is taken as the bytes of an upload arrive, so that announcing much and sending nothing locks nobody out. None
    may fall silent for `silence_s` seconds (408). One client may have `OPEN_UPLOADS` uploads open; one more takes the
    place of the one that has been silent longest (408), and is refused (429) when none has been for `YIELD_S`.
    """

    def __init__(
        self, app: ASGIApp, upload_bytes: int, folder: UploadFolder, proxies: int = 0, silence_s: float = SILENCE_S
    ) -> None:
        self.app, self.upload_bytes, self.folder = app, upload_bytes, folder
        self.proxies, self.silence_s = proxies, silence_s
        self._open: dict[str, list[Arriving]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not changes_something(scope):
            await self.app(scope, receive, send)
            return
        upload = is_upload(scope)
        limit = self.upload_bytes + FORM_EXTRA if upload else MAX_BODY
        length = content_length(Headers(scope=scope))
        if length is None:
            await refusal(scope, 411, strings.NO_LENGTH)(scope, receive, send)
        elif length > limit:
            await refusal(scope, 413, strings.too_large(limit))(scope, receive, send)
        elif upload:
            await self._upload(length, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope, self.proxies)
        others = self._open.get(client, [])
        if len(others) >= OPEN_UPLOADS:
            stalest = max(others, key=Arriving.silent_for)
            if stalest.silent_for() < YIELD_S:
                await refusal(scope, 429, strings.too_many_uploads(OPEN_UPLOADS))(scope, receive, send)
                return
            stalest.give_up()
            self._forget(client, stalest)
        arriving = Arriving(self.folder, receive, length, self.silence_s)
        self._open.setdefault(client, []).append(arriving)
        try:
            await self.app(scope, arriving.receive, send)
        except NoRoom as error:
            await refusal(scope, 507, str(error))(scope, receive, send)
        except TypeError:  # Gradio's, for a part of the form that is no file
            await refusal(scope, 400, strings.NO_FILE)(scope, receive, send)
        except TimeoutError:
            await refusal(scope, 408, strings.SILENT_UPLOAD)(scope, receive, send)
        finally:
            self.folder.release(arriving.taken)
            self._forget(client, arriving)

    def _forget(self, client: str, upload: Arriving) -> None:
        """Give an upload's place free, unless another one has it already."""
        left = [one for one in self._open.pop(client, []) if one is not upload]
        if left:
            self._open[client] = left


class NoRoom(Exception):
    """An upload found no room; the message is for the page."""


class Arriving:
    """The bytes of one upload of an announced length on their way in; for `taken` of them room is reserved.

    `receive` raises NoRoom when there is none for more, TimeoutError after `silence_s` seconds without a message, or
    when it is told to give up.
    """

    def __init__(self, folder: UploadFolder, receive: Receive, length: int, silence_s: float) -> None:
        self.folder, self._receive, self.length, self.silence_s = folder, receive, length, silence_s
        self.arrived = self.taken = 0
        self._waits: tuple[float, CancelScope] | None = None  # since when, and what ends it

    def silent_for(self) -> float:
        """Return the seconds since it began to wait for bytes; 0 while it works on some."""
        return 0.0 if self._waits is None else current_time() - self._waits[0]

    def give_up(self) -> None:
        """End the wait for bytes as if its time were over."""
        if self._waits is not None:
            self._waits[1].deadline = current_time()

    async def receive(self) -> Message:
        with fail_after(self.silence_s) as scope:
            self._waits = (current_time(), scope)
            try:
                message = await self._receive()
            finally:
                self._waits = None
        self.arrived += len(message.get("body", b""))
        if self.arrived > self.taken:
            # As much again as has arrived, so that the folder is looked through a few times only.
            step = max(self.arrived - self.taken, min(self.arrived, self.length - self.taken))
            problem = await to_thread.run_sync(self.folder.reserve, step)
            if problem is not None:
                raise NoRoom(problem)
            self.taken += step
        return message


def content_length(headers: Headers) -> int | None:
    """Return the announced length of a body; 0 for none at all, None when it comes in pieces of unknown number."""
    length = headers.get("content-length", "")
    if length.isdecimal():
        return int(length)
    return None if "transfer-encoding" in headers else 0
