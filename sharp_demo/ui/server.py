"""What the web server refuses before Gradio sees it."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

REFUSED = "Requests from other web sites are refused."


class SameOrigin:
    """ASGI middleware: a request that another web site's page sends to change something here is refused with 403.

    Gradio's own CORS check leaves multipart uploads open, with which any page could fill a local demo's disk.
    Clients that are no browsers send no Origin and pass.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            if is_foreign(headers.get("origin"), headers.get("x-forwarded-host") or headers.get("host", "")):
                await PlainTextResponse(REFUSED, 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_foreign(origin: str | None, host: str) -> bool:
    """Return True when a browser says that a page of another host sent the request."""
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
