"""What the server reads from Gradio's queue, the only place that knows its insides; and who still gets in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sharp_demo import strings
from sharp_demo.web.calls import route_of
from sharp_demo.web.server import client_of


class PageQueue:
    """The requests that wait for or use the model of one page. Any thread may ask."""

    def __init__(self, page: gr.Blocks) -> None:
        self.page = page

    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self.page._queue)

    def clients(self, proxies: int) -> list[str]:
        """Return the addresses whose requests wait, one for each request."""
        return [client_of(event.request.scope, proxies) for event in self._waiting() if event.request is not None]

    def unread(self, session: str) -> int:
        """Return how many messages a session has not taken yet; 0 where there is no such session (any more)."""
        messages = self.page._queue.pending_messages_per_session.get(session)
        return 0 if messages is None else messages.qsize()

    def knows(self, session: str) -> bool:
        """Return True for a session that has asked for something."""
        return session in self.page._queue.pending_messages_per_session

    def owner(self, event: str) -> str | None:
        """Return the session whose event this is; None when nobody's waits, runs or has an answer to fetch."""
        queue = self.page._queue
        known = queue.event_ids_to_events.get(event)
        if known is not None:
            return known.session_hash
        sessions = list(queue.pending_event_ids_session.items())
        # An event without a session of its own is its own session.
        return next((session for session, events in sessions if event in events), event if self.knows(event) else None)

    def _waiting(self) -> list[Any]:
        queues = list(self.page._queue.event_queue_per_concurrency_id.values())
        return [event for one in queues for event in list(one.queue)]

    def files(self) -> set[Path]:
        """Return the files that the requests name which wait or run."""
        queue = self.page._queue
        running = [event for job in list(queue.active_jobs) for event in job or ()]
        asked = [event.data.data for event in (*self._waiting(), *running) if event.data is not None]
        return {Path(path) for path in paths_in(asked)}


class LastPlaces:
    """Keeps the last quarter of the queue for clients that have nothing in it: one alone never fills it.

    `waiting` : the clients whose requests wait, one for each request. `size` : of the queue. 429 for those who must
    wait until one of theirs has run.
    """

    def __init__(self, app: ASGIApp, waiting: Callable[[int], list[str]], size: int, proxies: int) -> None:
        self.app, self.waiting, self.size, self.proxies = app, waiting, size, proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (route_of(scope) or "").startswith(("queue/join", "call/")):
            own = self.kept_from(client_of(scope, self.proxies))
            if own:
                await JSONResponse({"detail": strings.many_waiting(own)}, 429)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def kept_from(self, client: str) -> int:
        """Return how many of its own requests a client has to wait for; 0: there is a place for another."""
        clients = self.waiting(self.proxies)
        # A full queue is for Gradio to refuse, in the words that the page waits for.
        return clients.count(client) if self.size - self.size // 4 <= len(clients) < self.size else 0


def paths_in(value: Any) -> list[str]:
    """Return every path that a component's value holds: the text itself, or FileData anywhere in it."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        own = [value["path"]] if isinstance(value.get("path"), str) else []
        return own + [path for part in value.values() if isinstance(part, dict | list) for path in paths_in(part)]
    if isinstance(value, list | tuple):
        return [path for part in value if isinstance(part, str | dict | list | tuple) for path in paths_in(part)]
    return []
