"""Run the app for a long time under visitors of every kind and write what it holds on to (docs/results/soak.json, .md).

Usage: python tools/soak.py [--minutes 60] [--runs 500] [--pause 4] [--output docs/results/soak]
Ends when both the minutes and the runs are reached. Started again with the same output it goes on in a new segment (a
new server process) until they are. Each visitor uploads a clip that nobody uploaded before and asks about it; some
send a file that is no video, some leave as soon as their run has begun. The server is a kiosk, and all the while a
browser shows its loop of examples. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sharp_demo.bench.provenance import commit, machine  # noqa: E402

MODELS = ("tiny-llava-onevision", "tiny-qwen2-vl")
METHODS = ("vanilla", "fastv", "feather", "sharp")
QUOTA_MB = 15  # small, so that the clean-up has work within minutes
COLUMNS = (
    "at_s",
    "outcome",
    "took_s",
    "resident_mb",
    "descriptors",
    "threads",
    "files",
    "files_mb",
    "page_mb",
    "shows",
)
KIOSK = {"SHARP_KIOSK": "1", "SHARP_KIOSK_IDLE_S": "5", "SHARP_KIOSK_LOOP_S": "15"}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class Server:
    """One process of app.py and what can be measured of it from outside."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.cache = folder / "cache"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "GRADIO_"))},
            **KIOSK,
            "SHARP_PORT": str(self.port),
            "SHARP_UPLOAD_QUOTA_MB": str(QUOTA_MB),
            "SHARP_REQUESTS_PER_MINUTE": "0",
            "GRADIO_TEMP_DIR": str(self.cache),
            "HF_HUB_OFFLINE": "1",
        }
        self.log = (folder / "app.log").open("w")
        self.process = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env=environment, stderr=self.log)
        for _ in range(600):
            try:
                self.get("/healthz")
                return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        raise SystemExit(f"the app did not come up: {(folder / 'app.log').read_text()[-2000:]}")

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=120) as answer:
            return answer.read()

    def post(self, path: str, body: bytes, kind: str) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def upload(self, data: bytes) -> str:
        head = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="clip.mp4"\r\n\r\n'
        kind = "multipart/form-data; boundary=edge"
        return self.post("/gradio_api/upload", head + data + b"\r\n--edge--\r\n", kind)[0]

    def ask(self, path: str, rng: random.Random, leave: bool) -> str:
        """Ask about an uploaded file; return "done", "refused" or "left"."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        methods = rng.sample(METHODS, rng.randint(1, 4))
        data = [file, f"What is it, number {rng.random()}?", methods, rng.choice([0.1, 0.2, 0.5, 1.0]), "tokens"]
        data += [rng.choice([4, 8, 16]), rng.choice(MODELS)]
        body = json.dumps({"data": data}).encode()
        event = self.post("/gradio_api/call/compare", body, "application/json")["event_id"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", f"/gradio_api/call/compare/{event}")
        stream = connection.getresponse()
        try:
            if leave:
                stream.read(50)
                return "left"
            text = stream.read().decode()
        finally:
            connection.close()
        ends = {"event: complete": "done", "event: error": "refused"}
        return next((outcome for mark, outcome in ends.items() if mark in text), "lost")

    def measure(self) -> list[float]:
        """Resident MB, open descriptors, threads, files in the cache, and their MB."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":\t") for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        files = [path.stat().st_size for path in self.cache.rglob("*") if path.is_file()]
        return [
            round(int(status["VmRSS"].split()[0]) / 1024, 1),
            len(list((proc / "fd").iterdir())),
            int(status["Threads"]),
            len(files),
            round(sum(files) / 1e6, 1),
        ]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def look(page: Page) -> list[Any]:
    """MB that the kiosk's page holds after a garbage collection, and the question of the example it shows."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return [round(used / 1e6, 1), page.locator("#question textarea").input_value()]


def visit(server: Server, clips: list[bytes], rng: random.Random, number: int) -> str:
    """One visitor: an example clip with bytes of its own at the end; every tenth no video, every seventh leaves."""
    if number % 10 == 9:
        return server.ask(server.upload(rng.randbytes(20_000)), rng, leave=False)
    own = (16).to_bytes(4, "big") + b"free" + rng.randbytes(8)
    return server.ask(server.upload(rng.choice(clips) + own), rng, leave=number % 7 == 6)


def segment(document: dict[str, Any], minutes: float, runs: int, pause: float, output: Path) -> None:
    """Serve and measure until minutes and runs are reached; the file is written after every run."""
    clips = [path.read_bytes() for path in sorted((ROOT / "assets/clips").glob("*.mp4"))]
    before = sum(one["seconds"] for one in document["segments"]), sum(len(one["rows"]) for one in document["segments"])
    rows: list[list[Any]] = []
    document["segments"].append({"commit": commit(), "machine": machine(), "seconds": 0.0, "rows": rows})
    rng = random.Random(f"soak {len(document['segments'])}")
    chromium = next(path for name in CHROMIUM if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder))
        try:
            page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
            page.goto(f"http://127.0.0.1:{server.port}/")
            start = time.monotonic()
            while before[0] + time.monotonic() - start < 60 * minutes or before[1] + len(rows) < runs:
                began = time.monotonic()
                outcome = visit(server, clips, rng, len(rows))
                took = round(time.monotonic() - began, 2)
                time.sleep(pause)
                rows.append([round(time.monotonic() - start, 1), outcome, took, *server.measure(), *look(page)])
                document["segments"][-1]["seconds"] = rows[-1][0]
                output.with_suffix(".json").write_text(to_json(document), "utf-8")
                if len(rows) % 20 == 0:
                    print(dict(zip(COLUMNS, rows[-1], strict=True)), flush=True)
        finally:
            server.close()


def to_json(document: dict[str, Any]) -> str:
    """The document as text, one run a line."""
    parts = []
    for one in document["segments"]:
        facts = {name: value for name, value in one.items() if name != "rows"}
        rows = ",\n".join(json.dumps(row) for row in one["rows"])
        parts.append(json.dumps(facts)[:-1] + f', "rows": [\n{rows}\n]}}')
    return f'{{"columns": {json.dumps(COLUMNS)}, "segments": [\n' + ",\n".join(parts) + "\n]}\n"


def markdown(document: dict[str, Any]) -> str:
    """What each segment held on to. The slope is a least-squares line through its second half."""
    lines = [
        "# Soak",
        "",
        "`python tools/soak.py`: visitors one after another, each with a clip of its own; every tenth uploads none,",
        f"every seventh leaves as soon as the run has begun. The upload folder may hold {QUOTA_MB} MB: beyond, files",
        "that nobody touched for ten minutes go. The server is a kiosk, and all the while a browser shows its loop, an",
        "example every 15 s; its page starts afresh after four rounds. Resident memory, descriptors, threads and files",
        "of the server process, and the heap of the browser's page: first run / middle / last. The slope is fitted to",
        "the second half.",
        "",
        "| minutes | runs | outcomes | resident MB | slope, MB/h | slope, kB/run | descriptors | threads | files "
        "| examples shown | page MB |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in document["segments"]:
        rows = one["rows"]
        if len(rows) < 4:
            continue
        half = rows[len(rows) // 2 :]
        hours = [row[0] / 3600 for row in half]
        memory = [row[3] for row in half]
        by_hour = statistics.linear_regression(hours, memory).slope
        by_run = 1000 * statistics.linear_regression(range(len(half)), memory).slope
        outcomes = ", ".join(f"{name} {count}" for name, count in Counter(row[1] for row in rows).most_common())

        shown = 1 + sum(before[9] != after[9] for before, after in pairwise(rows))

        def course(column: int, rows: list[list[Any]] = rows) -> str:
            return " / ".join(f"{row[column]:g}" for row in (rows[0], rows[len(rows) // 2], rows[-1]))

        lines.append(
            f"| {one['seconds'] / 60:.0f} | {len(rows)} | {outcomes} | {course(3)} | {by_hour:.1f} | {by_run:.1f} "
            f"| {course(4)} | {course(5)} | {course(6)} | {shown} | {course(8)} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between visitors")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/soak")
    options = parser.parse_args()
    stored = options.output.with_suffix(".json")
    document = json.loads(stored.read_text("utf-8")) if stored.is_file() else {"segments": []}
    try:
        segment(document, options.minutes, options.runs, options.pause, options.output)
    finally:
        options.output.with_suffix(".md").write_text(markdown(document), "utf-8")
        print(markdown(document))


if __name__ == "__main__":
    main()
