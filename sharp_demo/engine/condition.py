"""What an engine is doing and what is wrong with it, for health checks; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sharp_demo.errors import DeviceLostError

NO_MEMORY = "the device ran out of memory, even with half the frames: choose fewer frames or a smaller model"
NOT_BUILT = "the engine does not start and the server must restart; its log has the details"
DEVICE_LOST = "the accelerator failed and the server must restart; try again in a minute"


@dataclass
class Condition:
    """Written by the run that holds the model, read by anybody.

    `heard` is when (`time.monotonic`) the last event of a run came; `error` the last message of a failed run;
    `lost` says why the device, or the engine, cannot be used before the process restarts.
    """

    model: str = ""
    state: Literal["not loaded", "loading", "ready"] = "not loaded"
    running: bool = False
    heard: float = 0.0
    runs: int = 0
    error: str = ""
    lost: str = ""

    def refuse_when_lost(self) -> None:
        """Raise DeviceLostError when only a new process can use the device."""
        if self.lost:
            raise DeviceLostError(self.lost)
