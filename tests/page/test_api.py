"""The named endpoint `compare`, by gradio_client and by plain HTTP, and what it refuses."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from sharp_demo import strings
from sharp_demo.engine import Engine
from sharp_demo.page.api import Api
from sharp_demo.page.runs import Runs
from sharp_demo.settings import Settings

pytestmark = pytest.mark.timeout(180)
INPUTS = {"question": "What moves?", "methods": ["vanilla", "sharp"], "retention": 0.25, "match": "tokens"}


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Client:
    return Client(server, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def call(server: str, data: list) -> str:
    """POST a call and return the event stream's text."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(f"{server}/gradio_api/call/compare", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{server}/gradio_api/call/compare/{event}", timeout=120) as response:
        return response.read().decode()


def upload(server: str, path: Path, **headers: str) -> str:
    """POST a file as multipart form data and return its path on the server."""
    edge = "edge-of-the-part"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(
        f"{server}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={edge}", **headers}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)[0]


def file_data(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_only_compare_is_public_and_its_inputs_are_flat(client):
    api = client.view_api(return_format="dict", print_info=False)
    assert list(api["named_endpoints"]) == ["/compare"]
    assert not api["unnamed_endpoints"]
    names = [parameter["parameter_name"] for parameter in api["named_endpoints"]["/compare"]["parameters"]]
    assert names == ["video", "question", "methods", "retention", "match", "frames", "model"]


def test_gradio_client_gets_results_by_the_contract(client, clip):
    answer = client.predict(video=handle_file(str(clip)), **INPUTS, api_name="/compare")
    assert set(answer) == {"request", "results", "failed"}
    assert answer["failed"] == []
    assert answer["request"]["video"] == clip.name
    vanilla, sharp = answer["results"]
    assert (vanilla["method"], sharp["method"]) == ("vanilla", "sharp")
    assert sharp["tokens"]["kept"] == sum(map(len, sharp["kept"])) == round(0.25 * sharp["tokens"]["visual"])
    assert vanilla["tokens"]["retention"] == 1.0


@pytest.mark.parametrize(("model", "frames"), [("tiny-llava-onevision", 4), ("tiny-qwen2-vl", 2)])
def test_plain_http(server, clip, model, frames):
    stream = call(server, [file_data(upload(server, clip)), "What moves?", ["fastv"], 0.5, "tokens", 4, model])
    last = stream.strip().split("event: ")[-1]
    assert last.startswith("complete")
    answer = json.loads(last.split("data: ", 1)[1])[0]
    assert answer["results"][0]["layout"]["frames"] == frames


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": "x" * 201}, "at most 200"),
        ({"question": "   "}, "question"),
        ({"methods": []}, "at least one method"),
        ({"methods": ["vanilla", "teleport"]}, "teleport"),
        ({"retention": 0}, "between 0.01 and 1"),
        ({"retention": 1.5}, "between 0.01 and 1"),
        ({"retention": "much"}, None),
        ({"frames": 10_000}, "frames"),
        ({"frames": -1}, "frames"),
        ({"match": "luck"}, "luck"),
        ({"model": "someone/else"}, "someone/else"),
        ({"video": None}, "Choose a video"),
    ],
)
def test_bad_values_are_refused_with_a_reason(client, clip, change, says):
    inputs = {"video": handle_file(str(clip)), **INPUTS, **change}
    with pytest.raises((AppError, ValueError)) as refused:
        client.predict(**inputs, api_name="/compare")
    if says:
        assert says in str(refused.value)
    assert "Traceback" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "app.py", "../../etc/passwd", "http://127.0.0.1:1/clip.mp4", "https://example.com/clip.mp4"],
)
def test_only_uploaded_files_are_read(server, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(server, [file_data(path), "What moves?", ["vanilla"], 0.5, "tokens", 0, "tiny-llava-onevision"])
    assert refused.value.code == 422
    line = strings.NO_URL if "://" in path else strings.NOT_UPLOADED
    assert json.load(refused.value) == {"detail": line}


def test_a_server_whose_answers_are_short_answers(clip, tmp_path):
    settings = Settings(model="tiny-llava-onevision", device="cpu", max_new_tokens=2)
    api = Api(Runs(Engine(settings), settings, tmp_path, clip.parent))
    *_, answer = api.compare(str(clip), "What moves?", ["vanilla"], 1, "tokens", 4, None)
    assert answer["request"]["max_new_tokens"] == 2
    assert answer["results"][0]["answer_tokens"] <= 2


def test_too_large_an_upload_is_refused(server, tmp_path):
    huge = tmp_path / "huge.mp4"
    huge.write_bytes(b"\0" * 101_000_000)
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as refused:
        upload(server, huge)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://127.0.0.1:1"])
def test_other_web_sites_cannot_upload(server, clip, origin):
    with pytest.raises(urllib.error.HTTPError) as refused:
        upload(server, clip, Origin=origin)
    assert refused.value.code == 403
    assert upload(server, clip, Origin=server)


def test_monitoring_and_run_history_are_off(server):
    for path in ("/monitoring", "/gradio_api/runs", "/gradio_api/file=app.py", "/gradio_api/file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(server + path, timeout=10)
        assert refused.value.code in (403, 404), path
