"""Every knob of a deployment, typed, from SHARP_* environment variables. Nothing else reads the environment."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent

EMBEDDED = ("tiny-llava-onevision", "tiny-qwen2-vl")
HUB_MODELS = (
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen/Qwen2-VL-7B-Instruct",
)
# Without these a Python child process may not even start; everything else is withheld from it.
_START_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")


class Settings(BaseSettings):
    """Settings of one server or command; `SHARP_MODEL=... python app.py` sets `model`, and so on."""

    model_config = SettingsConfigDict(env_prefix="SHARP_", extra="ignore", protected_namespaces=())

    model: str | None = Field(None, description="embedded name, hub id or local folder; empty: chosen by the device")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="weights and activations")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field("auto", description="attention backend")
    threads: int = Field(0, ge=0, description="torch CPU threads; 0 leaves torch's own choice")

    host: str = Field("127.0.0.1", description="address the web server binds to")
    port: int = Field(7860, ge=1, le=65535, description="port of the web server")
    queue_size: int = Field(20, ge=1, description="requests that may wait; more are refused")
    webcam: bool = Field(True, description="offer the webcam beside file upload")
    run_timeout_s: float = Field(600, gt=0, description="wall clock of one run in the app")

    max_upload_mb: float = Field(100, gt=0, description="size of a video file, 10^6 bytes")
    max_duration_s: float = Field(120, gt=0, description="length of a video")
    max_side: int = Field(4096, ge=16, description="longest side of a video, pixels")
    max_pixels: int = Field(3840 * 2160, ge=256, description="pixels of one frame")
    max_frames: int = Field(64, ge=1, description="frames a request may ask for")
    max_visual_tokens: int = Field(12_800, ge=1, description="visual tokens a request may need")
    max_question_chars: int = Field(500, ge=1, description="length of a question, characters")
    max_new_tokens: int = Field(128, ge=1, description="longest answer a request may ask for, tokens")
    decode_timeout_s: float = Field(30, gt=0, description="wall clock of the decoding child process")
    decode_cpu_s: int = Field(20, ge=1, description="CPU time of the decoding child process")
    decode_memory_mb: int = Field(3072, ge=256, description="address space of the decoding child process")
    decode_output_mb: int = Field(512, ge=1, description="bytes of decoded frames the child may write")

    assets: Path = Field(ROOT / "assets", description="embedded models and example clips")

    @cached_property
    def embedded(self) -> dict[str, Path]:
        """Embedded model names and their folders, only those that are really there."""
        folders = {name: self.assets / "models" / name for name in EMBEDDED}
        return {name: folder for name, folder in folders.items() if (folder / "config.json").is_file()}

    def child_environment(self) -> dict[str, str]:
        """Return the environment for a child process that handles untrusted data: only what it needs to start."""
        return {name: os.environ[name] for name in _START_VARIABLES if name in os.environ}
