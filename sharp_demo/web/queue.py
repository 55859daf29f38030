"""What the server reads from Gradio's queue: the only place that knows its insides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr


class PageQueue:
    """The requests that wait for or use the model of one page. Any thread may ask."""

    def __init__(self, page: gr.Blocks) -> None:
        self.page = page

    def waiting(self) -> int:
        """Return how many requests wait."""
        return len(self.page._queue)

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

    def files(self) -> set[Path]:
        """Return the files that the requests name which wait or run."""
        queue = self.page._queue
        waiting = [event for one in list(queue.event_queue_per_concurrency_id.values()) for event in list(one.queue)]
        running = [event for job in list(queue.active_jobs) for event in job or ()]
        asked = [event.data.data for event in (*waiting, *running) if event.data is not None]
        return {Path(path) for path in paths_in(asked)}


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
