"""Every knob of a deployment, typed, from SHARP_* environment variables. Nothing else reads the environment."""

from __future__ import annotations

import difflib
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sharp_demo.errors import InputError

ROOT = Path(__file__).resolve().parent.parent

EMBEDDED = ("tiny-llava-onevision", "tiny-qwen2-vl")
ON_SPACE = "SPACE_ID"  # set by Hugging Face where the app runs as a Space
# Without these a Python child process may not even start; everything else is withheld from it.
_START_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT")


def default_host() -> str:
    """Return this machine only, except inside a Hugging Face Space, whose proxy comes from outside the container."""
    return "0.0.0.0" if ON_SPACE in os.environ else "127.0.0.1"


def default_proxies() -> int:
    """Return 0, except inside a Hugging Face Space, where all visitors come through Hugging Face's proxy."""
    return int(ON_SPACE in os.environ)


class Settings(BaseSettings):
    """Settings of one server or command; `SHARP_MODEL=... python app.py` sets `model`, and so on."""

    model_config = SettingsConfigDict(env_prefix="SHARP_", extra="ignore", protected_namespaces=())

    model: str | None = Field(None, description="embedded name, hub id or local folder; empty: chosen by the device")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="weights and activations")
    attention: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field("auto", description="attention backend")
    threads: int = Field(0, ge=0, description="torch CPU threads; 0: torch's own choice, in the app all cores but one")

    timing_s: float = Field(2, ge=0, le=60, description="timing rounds after the answers, seconds; 0: none")

    methods: Annotated[tuple[str, ...], NoDecode] = Field(
        ("vanilla", "fastv", "feather", "sharp"), min_length=1, description="methods chosen at first, comma-separated"
    )

    host: str = Field(default_factory=default_host, description="address the web server binds to; in a Space 0.0.0.0")
    port: int = Field(7860, ge=1, le=65535, description="port of the web server")
    log: Literal["text", "json"] = Field("text", description="style of the server's log on stderr")
    allowed_hosts: str = Field(
        "", description="names this server answers to besides loopback and bare addresses, comma-separated; `*`: any"
    )
    frame_ancestors: str = Field(
        "",
        description="who may embed the page (CSP frame-ancestors); empty: itself, on a Space Hugging Face too",
    )
    proxies: int = Field(
        default_factory=default_proxies,
        ge=0,
        description="own reverse proxies in front, whose X-Forwarded-For is believed; in a Space 1",
    )
    requests_per_minute: int = Field(120, ge=0, description="uploads, runs and clicks of one client; 0: no limit")
    queue_size: int = Field(20, ge=1, description="requests that may wait; more are refused")
    webcam: bool = Field(True, description="offer the webcam as well as file upload")
    kiosk: bool = Field(False, description="booth: large type, stored results at once, examples loop when idle")
    kiosk_upload: bool = Field(True, description="let visitors of a kiosk bring clips; 0: its examples only")
    kiosk_idle_s: float = Field(90, gt=0, description="seconds without a visitor until a kiosk wipes and loops")
    kiosk_loop_s: float = Field(15, gt=0, description="seconds that a looping kiosk shows each example")
    run_timeout_s: float = Field(600, gt=0, description="wall clock of one run in the app")

    max_upload_mb: float = Field(100, gt=0, description="size of a video file, 10^6 bytes")
    upload_quota_mb: float = Field(2000, gt=0, description="all uploaded and made files together, 10^6 bytes")
    min_free_mb: float = Field(500, ge=0, description="free disk below which uploads are refused, 10^6 bytes")
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

    @field_validator("methods", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @property
    def zero_gpu(self) -> bool:
        """Whether this is a Space on ZeroGPU hardware, by the variable that the `spaces` package itself goes by."""
        return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")

    @property
    def uploads(self) -> bool:
        """Whether visitors may bring clips of their own."""
        return self.kiosk_upload or not self.kiosk

    @cached_property
    def embedded(self) -> dict[str, Path]:
        """Embedded model names and their folders, only those that are really there."""
        folders = {name: self.assets / "models" / name for name in EMBEDDED}
        return {name: folder for name, folder in folders.items() if (folder / "config.json").is_file()}

    @property
    def model_name(self) -> str | None:
        """The name by which visitors know `model`: of an absolute path only the last part, unless that is taken."""
        folder = Path(self.model or "").expanduser()
        return folder.name if folder.is_absolute() and folder.name not in self.embedded else self.model

    @property
    def host_names(self) -> frozenset[str] | None:
        """Names this server answers to, in lower case; None: any, as on a Space, which its provider names."""
        names = {name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip()}
        if "*" in names or (ON_SPACE in os.environ and not names):
            return None
        return frozenset({*names, self.host.lower()})

    @property
    def framing(self) -> str:
        """Value of CSP frame-ancestors."""
        space = "'self' https://huggingface.co https://*.hf.space" if ON_SPACE in os.environ else "'self'"
        return " ".join(self.frame_ancestors.replace(";", " ").replace(",", " ").split()) or space

    def for_serving(self) -> Settings:
        """Return the settings of a web server: one core stays free for it where there is more than one."""
        return self.model_copy(update={"threads": self.threads or max(1, usable_cores() - 1)})

    def child_environment(self) -> dict[str, str]:
        """Return the environment for a child process that handles untrusted data: only what it needs to start."""
        return {name: os.environ[name] for name in _START_VARIABLES if name in os.environ}


def read_settings() -> Settings:
    """Read the settings from the environment; InputError names the variable that cannot be read, and why."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "_".join(("SHARP", *map(str, first["loc"]))).upper()
        raise InputError(f"{variable} is {first['input']!r}: {first['msg']}; correct it or unset it") from None


def heaps_are_chosen() -> bool:
    """Return whether the environment says how many heaps glibc's malloc makes."""
    return "MALLOC_ARENA_MAX" in os.environ


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_own_upload_folder() -> None:
    """Keep uploads apart from those of other Gradio apps, unless GRADIO_TEMP_DIR says where they go.

    Gradio reads that variable while the page is built. Old files in the folder may be deleted when it is full.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(upload_folder())


def believe_no_forwarded_address() -> None:
    """Make uvicorn leave the peer's address alone, whatever X-Forwarded-For says: `proxies` decides who is believed.

    On its own uvicorn believes every peer on loopback, and reads the variable when the server starts.
    """
    os.environ["FORWARDED_ALLOW_IPS"] = ""


def upload_folder() -> Path:
    """Return the folder that the app's uploads go to."""
    owner = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / f"sharp-demo{owner}")


def environment_with(**variables: str) -> dict[str, str]:
    """Return this process's environment with some variables changed, for a child process that may know all of it."""
    return {**os.environ, **variables}


def unknown_variables() -> dict[str, str]:
    """Return SHARP_* variables that name no setting, each with the setting it is most like, or an empty string."""
    known = [f"SHARP_{name.upper()}" for name in Settings.model_fields]
    unknown = [name for name in os.environ if name.startswith("SHARP_") and name not in known]
    return {name: next(iter(difflib.get_close_matches(name, known, 1)), "") for name in sorted(unknown)}
