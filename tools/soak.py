"""Run the app for a long time under visitors of every kind and write what it holds on to (docs/results/soak.json, .md).

Usage: python tools/soak.py [--minutes 60] [--runs 500] [--pause 4] [--output docs/results/soak]
Ends when both the minutes and the runs are reached. Started again with the same output it goes on in a new segment (a
new server process) until they are. Each visitor uploads a clip that nobody uploaded before and asks about it; some
send a file that is no video, some hang up in the middle of their run. The server is a kiosk, and all the while a
browser shows its loop of examples. A visit or a look at the page that fails is counted and the next one comes; a
server that ended ends the soak.

Says at the end whether the last segment was flat: a least-squares line through its second half must rise by less than
20 MB of resident memory an hour, 10 descriptors, 5 threads, 30 files of visitors, 5 other temporary files and 20 MB of
the browser's page (`LIMITS`). Exit code 1 when one is not, or when that half is shorter than ten minutes and says
nothing. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
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
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import Error as PageError
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.provenance import commit, machine  # noqa: E402

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
    "temporary",
    "page_mb",
    "shows",
)
LIMITS = {"resident_mb": 20, "descriptors": 10, "threads": 5, "files": 30, "temporary": 5, "page_mb": 20}  # an hour
MIN_HALF_S = 600  # what a cache that fills takes would look like a slope
UPDATES = 8  # of a run before a visitor hangs up: the clip is read by then, and a method is at work
ENDS = {b"event: complete": "done", b"event: error": "refused"}
KIOSK = {"SHARP_KIOSK": "1", "SHARP_KIOSK_IDLE_S": "5", "SHARP_KIOSK_LOOP_S": "15"}
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


class Server:
    """One process of app.py and what can be measured of it from outside."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.cache, self.temporary = folder / "cache", folder / "tmp"
        self.temporary.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "GRADIO_"))},
            **KIOSK,
            "SHARP_PORT": str(self.port),
            "SHARP_UPLOAD_QUOTA_MB": str(QUOTA_MB),
            "SHARP_REQUESTS_PER_MINUTE": "0",
            "GRADIO_TEMP_DIR": str(self.cache),
            "TMPDIR": str(self.temporary),
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
        raise SystemExit(f"the app did not come up: {self.said()}")

    def said(self) -> str:
        """The end of the server's log."""
        return Path(self.log.name).read_text("utf-8")[-2000:]

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
        """Ask about an uploaded file; return "done", "refused", "lost", or "left" after `UPDATES` updates."""
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
            updates = 0
            for line in stream:
                updates += line.startswith(b"event: generating")
                if leave and updates == UPDATES:
                    return "left"
                if line.strip() in ENDS:
                    return ENDS[line.strip()]
            return "lost"
        finally:
            stream.close()  # or the socket stays open
            connection.close()

    def measure(self) -> list[float]:
        """Resident MB, open descriptors, threads, files in the cache and their MB, other temporary files."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":\t") for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        files = sizes(self.cache)
        return [
            round(int(status["VmRSS"].split()[0]) / 1024, 1),
            len(list((proc / "fd").iterdir())),
            int(status["Threads"]),
            len(files),
            round(sum(files) / 1e6, 1),
            len(sizes(self.temporary)),
        ]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def sizes(folder: Path) -> list[int]:
    """Bytes of every file below a folder from which files may go at any time."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found.append(path.stat().st_size)
    return found


def look(page: Page) -> list[Any]:
    """MB that the kiosk's page holds after a garbage collection, and the question of the example it shows.

    None twice when the page started afresh meanwhile.
    """
    try:
        session = page.context.new_cdp_session(page)
        session.send("HeapProfiler.collectGarbage")
        used = session.send("Runtime.getHeapUsage")["usedSize"]
        session.detach()
        return [round(used / 1e6, 1), page.locator("#question textarea").input_value()]
    except PageError:
        return [None, None]


def visit(server: Server, clips: list[bytes], rng: random.Random, number: int) -> str:
    """One visitor: an example clip with bytes of its own at the end; every tenth no video, every seventh leaves.

    "failed" when the visit ended in an exception, which is printed.
    """
    own = (16).to_bytes(4, "big") + b"free" + rng.randbytes(8)
    no_video = number % 10 == 9
    try:
        path = server.upload(rng.randbytes(20_000) if no_video else rng.choice(clips) + own)
        return server.ask(path, rng, leave=number % 7 == 6 and not no_video)
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        print(f"visitor {number}: {type(error).__name__}: {error}", flush=True)
        return "failed"


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
                if server.process.poll() is not None:
                    raise SystemExit(f"the server ended with {server.process.returncode}: {server.said()}")
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


def column(rows: list[list[Any]], name: str) -> list[Any]:
    """The values of one column, without those that could not be measured."""
    return [row[COLUMNS.index(name)] for row in rows if row[COLUMNS.index(name)] is not None]


def slope(rows: list[list[Any]], name: str) -> float:
    """By how much a column rises in an hour: a least-squares line through the second half of the rows."""
    half = [row for row in rows[len(rows) // 2 :] if row[COLUMNS.index(name)] is not None]
    hours = [at / 3600 for at in column(half, "at_s")]
    return statistics.linear_regression(hours, column(half, name)).slope if len(set(hours)) > 1 else 0.0


def verdict(rows: list[list[Any]]) -> tuple[bool, list[str]]:
    """Whether nothing rose by more than `LIMITS`, and a line on each, or one that says why that cannot be told."""
    half = column(rows[len(rows) // 2 :], "at_s") or [0.0]
    if half[-1] - half[0] < MIN_HALF_S:
        return False, [f"too short to tell: the second half must last {MIN_HALF_S / 60:g} minutes"]
    slopes = {name: slope(rows, name) for name in LIMITS}
    lines = [
        f"{name}: {slopes[name]:+.1f} an hour, limit {limit}: {'flat' if slopes[name] < limit else 'NOT FLAT'}"
        for name, limit in LIMITS.items()
    ]
    return all(slopes[name] < limit for name, limit in LIMITS.items()), lines


def markdown(document: dict[str, Any]) -> str:
    """What each segment held on to. The slope is a least-squares line through its second half."""
    lines = [
        "# Soak",
        "",
        "`python tools/soak.py`: visitors one after another, each with a clip of its own; every tenth uploads none,",
        f"every seventh hangs up in the middle of the run. The upload folder may hold {QUOTA_MB} MB: beyond, files",
        "that nobody touched for ten minutes go. The server is a kiosk, and all the while a browser shows its loop, an",
        "example every 15 s; its page starts afresh after four rounds. Resident memory, descriptors, threads and files",
        "of the server process (temporary: those outside the upload folder), and the heap of the browser's page: first",
        "run / middle / last. Slopes are fitted to the second half.",
        "",
        "| minutes | runs | outcomes | resident MB | slope, MB/h | slope, kB/run | descriptors | threads | files "
        "| temporary | examples shown | page MB |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in document["segments"]:
        rows = one["rows"]
        if len(rows) < 4:
            continue
        half = column(rows[len(rows) // 2 :], "resident_mb")
        by_run = 1000 * statistics.linear_regression(range(len(half)), half).slope
        outcomes = ", ".join(f"{name} {count}" for name, count in Counter(column(rows, "outcome")).most_common())
        shown = 1 + sum(before != after for before, after in pairwise(column(rows, "shows")))

        def course(name: str, rows: list[list[Any]] = rows) -> str:
            values = column(rows, name) or [math.nan]
            return " / ".join(f"{value:g}" for value in (values[0], values[len(values) // 2], values[-1]))

        lines.append(
            f"| {one['seconds'] / 60:.0f} | {len(rows)} | {outcomes} | {course('resident_mb')} "
            f"| {slope(rows, 'resident_mb'):.1f} | {by_run:.1f} | {course('descriptors')} | {course('threads')} "
            f"| {course('files')} | {course('temporary')} | {shown} | {course('page_mb')} |"
        )
    if document["segments"]:
        flat, said = verdict(document["segments"][-1]["rows"])
        lines += [
            "",
            f"The last segment is {'flat' if flat else 'not shown to be flat'}:",
            "",
            *(f"- {line}" for line in said),
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between visitors")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/results/soak")
    options = parser.parse_args()
    stored = options.output.with_suffix(".json")
    document = json.loads(stored.read_text("utf-8")) if stored.is_file() else {"columns": COLUMNS, "segments": []}
    if tuple(document["columns"]) != COLUMNS:
        raise SystemExit(f"{stored} has other columns: remove it, or name another --output")
    try:
        segment(document, options.minutes, options.runs, options.pause, options.output)
    finally:
        options.output.with_suffix(".md").write_text(markdown(document), "utf-8")
        print(markdown(document))
    raise SystemExit(0 if verdict(document["segments"][-1]["rows"])[0] else 1)


if __name__ == "__main__":
    main()
