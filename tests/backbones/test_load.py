"""Loading: every way it can be asked, and every way it can fail, each with its own clear line."""

import json
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file

from sharp_demo.backbones import load as loading
from sharp_demo.backbones.families import hub_models
from sharp_demo.backbones.load import (
    Backbone,
    choose_attention,
    choose_device,
    choose_dtype,
    choose_placement,
    default_model,
    is_available,
    load,
)
from sharp_demo.errors import ModelError
from sharp_demo.settings import EMBEDDED, ROOT, Settings

SMALL, LARGE = hub_models()[:2]


@pytest.fixture
def copied(tiny_llava_folder: Path, tmp_path: Path) -> Path:
    """A private copy of a good checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_llava_folder, tmp_path / "copy"))


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("the hub said no", response=httpx.Response(status, request=httpx.Request("GET", "https://hub")))


def fake_hub(monkeypatch: pytest.MonkeyPatch, *, cached: Path | None = None, download: Path | Exception) -> list[str]:
    """Replace the hub client; returns the log of names that were asked to be downloaded."""
    asked: list[str] = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        if local_files_only:
            if cached is None:
                raise LocalEntryNotFoundError("nothing cached")
            return str(cached)
        asked.append(name)
        if isinstance(download, Exception):
            raise download
        return str(download)

    monkeypatch.setattr(loading, "snapshot_download", snapshot_download)
    monkeypatch.setattr(loading.HfApi, "model_info", lambda self, name, timeout: None)
    return asked


# --- what is loaded


def test_loaded_model_is_frozen_and_describes_itself(tiny: Backbone) -> None:
    assert not tiny.model.training
    assert not any(p.requires_grad for p in tiny.model.parameters())
    info = tiny.info
    assert (info.device, info.dtype, info.attention_backend) == ("cpu", "float32", "sdpa")
    assert info.device_reason == "cpu was asked for; float32 was asked for"
    assert info.parameters == sum(p.numel() for p in tiny.model.parameters())
    assert (info.trained, info.family) == (True, tiny.family)
    assert type(tiny.model).__module__.startswith("transformers.models.")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_checkpoints(name: str) -> None:
    settings = Settings(device="cpu")
    backbone = load(name, settings)
    card = json.loads((settings.embedded[name] / "card.json").read_text("utf-8"))
    assert is_available(name, settings)
    assert (backbone.info.trained, backbone.info.note) == (card["trained"], card["note"])
    assert backbone.info.note
    assert backbone.default_frames == card["default_frames"]
    assert backbone.info.revision == card["revision"]
    assert all(file.stat().st_size < 10_000_000 for file in settings.embedded[name].iterdir())
    grid = backbone.processor.video.grid(16, 112, 112)
    prompt = backbone.processor.prompt("What color is the car?", frames=16, grid=grid)
    frames = 16 // backbone.processor.family.frames_per_token(backbone.model.config)
    placeholders = int((prompt["input_ids"] == backbone.model.config.video_token_id).sum())
    assert placeholders == frames * 49 + (backbone.family == "llava-onevision")


def test_remote_code_is_never_run(copied: Path, cpu_settings: Settings) -> None:
    marker = copied / "ran"
    (copied / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((copied / name).read_text())
        values["auto_map"] = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
        (copied / name).write_text(json.dumps(values))
    assert load(str(copied), cpu_settings).family == "llava-onevision"
    assert not marker.exists()


# --- what can be wrong with the files


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def change_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def scramble_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:40] = b"x" * 32
    (folder / "model.safetensors").write_bytes(data)


def lose_a_shard(folder: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / shards["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def point_outside(folder: Path) -> None:
    (folder.parent / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("image_newline")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["image_newline"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_config, "not a checkpoint folder: it has no config.json"),
        (change_architecture, "architecture 'llama' is not supported; supported are llava_onevision, qwen2_vl"),
        (break_config, "config.json is not valid JSON"),
        (only_pickles, "no safetensors weights"),
        (cut_off, r"is cut off: \d+ bytes, the header promises \d+"),
        (empty_weights, "corrupt or cut off: 0 bytes"),
        (scramble_header, "corrupt: its safetensors header cannot be read"),
        (lose_a_shard, "incomplete: 1 of 2 shards are missing .*00002-of-00002"),
        (point_outside, "outside the folder"),
        (lose_a_tensor, "lacks 1 of the model's weights .*image_newline"),
        (reshape_a_tensor, "image_newline|size mismatch|shape"),
        (break_tokenizer, "config or tokenizer cannot be read"),
    ],
)
def test_damaged_folders(copied: Path, cpu_settings: Settings, damage: Callable[[Path], None], message: str) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=message) as caught:
        load(str(copied), cpu_settings)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_options() -> None:
    with pytest.raises(ModelError) as caught:
        load("gpt-5", Settings(device="cpu"))
    for option in (*EMBEDDED, *hub_models()):
        assert option in str(caught.value)
    assert not is_available("gpt-5", Settings(device="cpu"))


# --- the hub


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OfflineModeIsEnabled("offline mode is enabled"),
            "not in the local hub cache and cannot be downloaded .*offline",
        ),
        (httpx.ConnectError("no route"), "cannot be downloaded .*no route"),
        (LocalEntryNotFoundError("cannot reach the hub"), "cannot be downloaded .*cannot reach"),
        (http_error(HfHubHTTPError, 503), "cannot be downloaded .*the hub said no"),
        (http_error(GatedRepoError, 403), "is gated: accept its terms"),
        (http_error(RepositoryNotFoundError, 404), "the hub has no model"),
    ],
)
def test_hub_trouble(monkeypatch: pytest.MonkeyPatch, cpu_settings: Settings, error: Exception, message: str) -> None:
    fake_hub(monkeypatch, download=error)
    assert not is_available(SMALL, cpu_settings)
    with pytest.raises(ModelError, match=message):
        load(SMALL, cpu_settings)


@pytest.mark.parametrize("hub", ["closed", "silent"])
def test_an_unreachable_hub_is_said_within_5_s(
    hub: str, monkeypatch: pytest.MonkeyPatch, cpu_settings: Settings
) -> None:
    """Nobody listens at its port, or somebody who takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if hub == "closed":
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        start = time.monotonic()
        with pytest.raises(ModelError, match=r"cannot be downloaded .*use an embedded model") as said:
            load("nobody/has-this", cpu_settings)
        assert time.monotonic() - start < 5
    assert "\n" not in str(said.value)


def test_cached_model_loads_without_the_network(
    monkeypatch: pytest.MonkeyPatch, cpu_settings: Settings, tiny_llava_folder: Path
) -> None:
    asked = fake_hub(monkeypatch, cached=tiny_llava_folder, download=OfflineModeIsEnabled("offline"))
    assert is_available(SMALL, cpu_settings)
    assert load(SMALL, cpu_settings).name == SMALL
    assert asked == []


def test_half_cached_model_is_downloaded_again(
    monkeypatch: pytest.MonkeyPatch, cpu_settings: Settings, copied: Path, tiny_llava_folder: Path
) -> None:
    lose_a_shard(copied)
    asked = fake_hub(monkeypatch, cached=copied, download=tiny_llava_folder)
    assert not is_available(SMALL, cpu_settings)
    assert load(SMALL, cpu_settings).family == "llava-onevision"
    assert asked == [SMALL]


# --- placement


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A pretended CUDA GPU whose abilities a test can change."""
    fake = SimpleNamespace(bf16=True, capability=(9, 0), flash=False, memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: fake.bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: fake.capability)
    properties = SimpleNamespace(total_memory=fake.memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: fake.flash)
    fake.properties = properties
    return fake


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
def test_cpu_placement() -> None:
    placement = choose_placement(Settings())
    assert (placement.device, placement.dtype, placement.attention) == ("cpu", torch.float32, "sdpa")
    assert placement.device_reason == "no CUDA or MPS device; float32 is the default on CPU"
    assert placement.attention_reason == "flash-attn needs CUDA and the model runs on cpu"
    assert choose_placement(Settings(dtype="bfloat16")).dtype == torch.bfloat16
    assert choose_placement(Settings(attention="eager")).attention == "eager"
    for device in ("cuda", "mps"):
        with pytest.raises(ModelError, match=f"device {device} was asked for, but torch .* sees none"):
            choose_device(device)
    with pytest.raises(ModelError, match="flash_attention_2 was asked for, but flash-attn needs CUDA"):
        choose_placement(Settings(attention="flash_attention_2"))


def test_cuda_placement(gpu: SimpleNamespace) -> None:
    assert choose_device("auto") == ("cuda", "cuda is available")
    assert choose_device("cpu") == ("cpu", "cpu was asked for")
    assert choose_dtype("cuda", "auto") == (torch.bfloat16, "cuda supports bfloat16")
    gpu.bf16 = False
    assert choose_dtype("cuda", "auto") == (torch.float16, "cuda lacks bfloat16")
    assert choose_dtype("cuda", "float32") == (torch.float32, "float32 was asked for")


def test_flash_attention_only_where_it_can_run(gpu: SimpleNamespace) -> None:
    assert choose_attention("cuda", torch.bfloat16, "auto") == (
        "sdpa",
        "flash-attn is not installed or does not import",
    )
    with pytest.raises(ModelError, match="not installed"):
        choose_attention("cuda", torch.bfloat16, "flash_attention_2")
    gpu.flash = True
    assert choose_attention("cuda", torch.bfloat16, "auto")[0] == "flash_attention_2"
    assert choose_attention("cuda", torch.float16, "flash_attention_2")[0] == "flash_attention_2"
    assert choose_attention("cuda", torch.float32, "auto")[0] == "sdpa"
    assert choose_attention("cuda", torch.bfloat16, "sdpa") == ("sdpa", "sdpa was asked for")
    gpu.capability = (7, 5)
    assert choose_attention("cuda", torch.float16, "auto")[0] == "sdpa"


def test_mps_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == ("mps", "mps is available")
    for new_enough, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, yes=new_enough: yes)
        assert choose_dtype("mps", "auto")[0] == dtype
    assert choose_attention("mps", torch.float16, "auto")[0] == "sdpa"


# --- the model to start with


def test_default_model_prefers_what_was_asked() -> None:
    assert default_model(Settings(model="some/model")) == "some/model"


def test_a_local_model_is_known_by_its_folders_name(tiny_llava_folder: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(tiny_llava_folder), device="cpu")
    assert default_model(settings) == tiny_llava_folder.name
    assert loading.find_folder(tiny_llava_folder.name, settings) == tiny_llava_folder
    taken = tmp_path / EMBEDDED[0]
    taken.mkdir()
    assert default_model(Settings(model=str(taken), assets=ROOT / "assets")) == str(taken), "an embedded one has it"


@pytest.mark.usefixtures("no_accelerator")
def test_default_model_on_cpu_is_embedded(cpu_settings: Settings) -> None:
    assert default_model(Settings(assets=ROOT / "assets")) == EMBEDDED[0]
    with pytest.raises(ModelError, match=r"no model: .* holds none"):
        default_model(cpu_settings)


def test_default_model_on_cuda(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(assets=ROOT / "assets")
    cached: set[str] = set()
    reachable: set[str] = set()
    monkeypatch.setattr(loading, "is_available", lambda name, settings: name in cached)
    monkeypatch.setattr(loading, "_hub_has", lambda name: name in reachable)
    assert default_model(settings) == EMBEDDED[0]
    reachable |= {SMALL, LARGE}
    assert default_model(settings) == LARGE
    cached |= {SMALL}
    assert default_model(settings) == SMALL  # what is here beats 16 GB of download
    cached |= {LARGE}
    assert default_model(settings) == LARGE
    gpu.properties.total_memory = 8 * 2**30
    assert default_model(settings) == SMALL
    assert default_model(Settings(assets=ROOT / "assets", device="cpu")) == EMBEDDED[0]


def test_unreachable_hub_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, name: str, timeout: float) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(loading.HfApi, "model_info", refuse)
    assert not loading._hub_has(SMALL)


def test_models_may_be_loaded_on_several_threads(tiny_llava_folder: Path, cpu_settings: Settings) -> None:
    """transformers itself cannot: two loads at once leave it unable to load anything in this process."""

    def parameters(_: int) -> int:
        return load(str(tiny_llava_folder), cpu_settings).info.parameters

    with ThreadPoolExecutor(3) as threads:
        counts = list(threads.map(parameters, range(9)))
    assert len(set(counts)) == 1
