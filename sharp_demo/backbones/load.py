"""From a model's name to a ready backbone: where its files are, which device, dtype and attention it runs with."""

from __future__ import annotations

import json
import logging
import re
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from sharp_demo.backbones.families import FAMILIES, family_of, family_of_type, hub_models
from sharp_demo.backbones.files import one_line, read_json
from sharp_demo.backbones.processor import Processor
from sharp_demo.backbones.tiny import CARD
from sharp_demo.errors import ModelError
from sharp_demo.records import ModelInfo
from sharp_demo.settings import EMBEDDED, Settings, read_settings

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_S = 3.0  # of a question to the hub, looking up its name included
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# from_pretrained swaps class methods and puts back what it found: two at once leave them swapped for good.
_ONE_LOAD_AT_A_TIME = threading.Lock()
LARGE_GPU_BYTES = 22 * 2**30  # a 7B model in half precision, its tower and one 6,273-token prefill


@dataclass(frozen=True, eq=False)
class Backbone:
    """A loaded video LLM: the unmodified transformers model in eval mode, and what goes with it."""

    name: str
    family: str
    model: PreTrainedModel
    processor: Processor
    info: ModelInfo
    default_frames: int
    folder: Path


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs, each choice with its reason."""

    device: str
    device_reason: str
    dtype: torch.dtype
    attention: str
    attention_reason: str


def load(name: str, settings: Settings | None = None) -> Backbone:
    """Load a model by embedded name, local folder or hub id.

    Weights come from safetensors only and no code from the checkpoint is run. A hub model that is wholly in the
    local cache is loaded without touching the network. `settings` default to those of the environment. Raises
    `ModelError` with one line naming what is wrong.
    """
    settings = read_settings() if settings is None else settings
    placement = choose_placement(settings)
    folder = find_folder(name, settings)
    check_weights(folder)
    card = read_json(folder / CARD)
    processor = Processor.from_pretrained(
        folder, max_question_chars=settings.max_question_chars, max_visual_tokens=settings.max_visual_tokens
    )
    model = _load_model(folder, processor.config, placement)
    family = family_of(model.config)
    info = ModelInfo(
        name=name,
        family=family.name,
        trained=bool(card.get("trained", True)),
        note=str(card.get("note", "")),
        device=placement.device,
        device_reason=placement.device_reason,
        dtype=str(placement.dtype).removeprefix("torch."),
        attention_backend=placement.attention,
        attention_reason=placement.attention_reason,
        parameters=sum(p.numel() for p in model.parameters()),
        revision=str(card.get("revision") or (folder.name if folder.parent.name == "snapshots" else "")),
    )
    logger.info(
        "%s on %s in %s (%s), attention %s (%s)",
        *(name, info.device, info.dtype, info.device_reason, info.attention_backend, info.attention_reason),
    )
    frames = int(card.get("default_frames", family.default_frames))
    return Backbone(name, family.name, model, processor, info, frames, folder)


def is_available(name: str, settings: Settings) -> bool:
    """Whether the model's files are here in full (embedded, local folder or hub cache); nothing is downloaded."""
    try:
        check_weights(_local_folder(name, settings) or _cached_folder(name))
    except ModelError:
        return False
    return True


def default_model(settings: Settings) -> str:
    """The model to start with when the request names none.

    `settings.model_name` if set; on a CUDA host the first family's largest published model (with less than 22 GB its
    smallest) if it is cached or the hub can be reached; else the first embedded model.
    """
    if settings.model_name:
        return settings.model_name
    if settings.device in ("auto", "cuda") and torch.cuda.is_available():
        small, *_, large = (model.hub for model in FAMILIES[0].published)
        wanted = large if torch.cuda.get_device_properties(0).total_memory >= LARGE_GPU_BYTES else small
        for name in dict.fromkeys((wanted, small)):
            if is_available(name, settings):
                return name
        if _hub_has(wanted):
            return wanted
    if settings.embedded:
        return next(iter(settings.embedded))
    raise ModelError(f"no model: {settings.assets / 'models'} holds none and SHARP_MODEL names none")


# --- files


def find_folder(name: str, settings: Settings) -> Path:
    """The local folder with a model's files, downloaded from the hub if need be. Raises `ModelError`."""
    folder = _local_folder(name, settings)
    if folder is not None:
        return folder
    try:
        folder = _cached_folder(name)
        check_weights(folder)
    except ModelError:
        return _download(name)
    return folder


def check_weights(folder: Path) -> None:
    """Check that a checkpoint folder holds whole safetensors, from their headers alone.

    Raises `ModelError`: no config.json, unsupported architecture, no safetensors, a shard missing, cut off or corrupt.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a checkpoint folder: it has no config.json")
    family_of_type(read_json(folder / "config.json").get("model_type"))
    shards = {WEIGHTS}
    if (folder / INDEX).is_file():
        shards = set(map(str, read_json(folder / INDEX).get("weight_map", {}).values()))
    elif not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no safetensors weights ({WEIGHTS} or {INDEX}); other formats are not loaded")
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing or not shards:
        raise ModelError(f"{folder} is incomplete: {len(missing)} of {len(shards)} shards are missing {missing[:3]}")
    for shard in sorted(shards):
        if Path(shard).name != shard:
            raise ModelError(f"{folder}: the index names {shard!r}, which is outside the folder")
        _check_shard(folder / shard)


def _check_shard(path: Path) -> None:
    # safetensors: 8 bytes header length, a JSON header with byte ranges, then the bytes.
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        if not 0 < length <= size - 8:
            raise ModelError(f"{path} is corrupt or cut off: {size} bytes hold no safetensors header")
        try:
            header = json.loads(file.read(length))
            end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{path} is corrupt: its safetensors header cannot be read") from None
    if size != 8 + length + end:
        raise ModelError(f"{path} is cut off: {size} bytes, the header promises {8 + length + end}; download it again")


def _local_folder(name: str, settings: Settings) -> Path | None:
    if name in settings.embedded:
        return settings.embedded[name]
    if name == settings.model_name:
        name = settings.model or name
    with suppress(OSError, ValueError, RuntimeError):  # too long, a null character, no such home: it names no folder
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    if HUB_ID.fullmatch(name):
        return None
    if name in EMBEDDED:
        raise ModelError(
            f"{name} is not in {settings.assets / 'models'}: set SHARP_ASSETS to the assets folder of a checkout, "
            "which an installed package lacks"
        )
    options = ", ".join((*settings.embedded, *hub_models()))
    raise ModelError(f"unknown model {name!r}: give one of {options}, another hub id (owner/name) or a folder")


def _cached_folder(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise ModelError(f"{name} is not in the local hub cache") from None


def _download(name: str) -> Path:
    try:
        _ask_hub(name)  # a download would wait much longer for a hub that does not answer
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except GatedRepoError:
        raise ModelError(f"{name} is gated: accept its terms on the hub and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelError(f"the hub has no model {name}, or it is private and you are not logged in") from None
    except Exception as error:  # sockets, HTTP, disk, transfer library: to the person it is one thing
        raise ModelError(
            f"{name} is not in the local hub cache and cannot be downloaded ({one_line(error)}); "
            "use an embedded model, or try again online"
        ) from error


def _hub_has(name: str) -> bool:
    try:
        _ask_hub(name)
    except Exception:  # any network trouble means the same here: the embedded model it is
        return False
    return True


def _ask_hub(name: str) -> None:
    """Ask the hub for a model; raises what its client raises, TimeoutError when nothing comes."""
    problems: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
            problems.append(None)
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=ask, name="hub", daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    if not problems:
        raise TimeoutError(f"the hub gave no answer within {HUB_TIMEOUT_S:g} s")
    if problems[0] is not None:
        raise problems[0]


# --- placement


def choose_placement(settings: Settings) -> Placement:
    """Device, dtype and attention backend for these settings. Raises `ModelError` for what is not there."""
    device, device_reason = choose_device(settings.device)
    dtype, dtype_reason = choose_dtype(device, settings.dtype)
    attention, attention_reason = choose_attention(device, dtype, settings.attention)
    return Placement(device, f"{device_reason}; {dtype_reason}", dtype, attention, attention_reason)


def choose_device(wanted: str) -> tuple[str, str]:
    """("cuda" | "mps" | "cpu", reason)."""
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
        "cpu": lambda: True,
    }
    if wanted != "auto":
        if not there[wanted]():
            raise ModelError(f"device {wanted} was asked for, but torch {torch.__version__} sees none; use auto or cpu")
        return wanted, f"{wanted} was asked for"
    found = next(device for device, usable in there.items() if usable())
    return found, "no CUDA or MPS device" if found == "cpu" else f"{found} is available"


def choose_dtype(device: str, wanted: str) -> tuple[torch.dtype, str]:
    """(dtype, reason): half precision on accelerators, float32 on CPU unless another was asked for."""
    if wanted != "auto":
        return getattr(torch, wanted), f"{wanted} was asked for"
    if device == "cpu":
        return torch.float32, "float32 is the default on CPU"
    if device == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
    if bf16:
        return torch.bfloat16, f"{device} supports bfloat16"
    return torch.float16, f"{device} lacks bfloat16"


def choose_attention(device: str, dtype: torch.dtype, wanted: str) -> tuple[str, str]:
    """(attention backend, reason): FlashAttention 2 where it can run, else SDPA."""
    if wanted in ("sdpa", "eager"):
        return wanted, f"{wanted} was asked for"
    obstacle = _flash_obstacle(device, dtype)
    if obstacle is None:
        return "flash_attention_2", "flash-attn is installed and the GPU can run it"
    if wanted == "flash_attention_2":
        raise ModelError(f"flash_attention_2 was asked for, but {obstacle}; use sdpa")
    return "sdpa", obstacle


def _flash_obstacle(device: str, dtype: torch.dtype) -> str | None:
    if device != "cuda":
        return f"flash-attn needs CUDA and the model runs on {device}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash-attn needs half precision, not {dtype}"
    if torch.cuda.get_device_capability()[0] < 8:
        return "the GPU is older than flash-attn supports (compute capability 8.0)"
    if not is_flash_attn_2_available():
        return "flash-attn is not installed or does not import"
    return None


def _load_model(folder: Path, config: PreTrainedConfig, placement: Placement) -> PreTrainedModel:
    model_class = getattr(transformers, family_of(config).model_class)
    # Straight onto the GPU: a 7B model never has to fit into host memory.
    device_map = None if placement.device == "cpu" else {"": placement.device}
    try:
        with _ONE_LOAD_AT_A_TIME:
            model, report = model_class.from_pretrained(
                folder,
                dtype=placement.dtype,
                attn_implementation=placement.attention,
                device_map=device_map,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except torch.OutOfMemoryError:
        raise ModelError(
            f"{folder} does not fit into the memory of {placement.device}; choose a smaller model"
        ) from None
    except Exception as error:  # what damaged files make the libraries raise has no common kind
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise ModelError(f"{folder} cannot be loaded: {reason}") from error
    lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lost:
        raise ModelError(
            f"{folder} lacks {len(lost)} of the model's weights or has them in another shape, e.g. {lost[0]}"
        )
    return model.eval().requires_grad_(False)
