"""Damaged and hostile clips, decoded and sent to the running app: docs/results/fuzz-video.md and .json.

Usage: python tools/fuzz_video.py [COPIES] [--output docs/results/fuzz-video]      (default: 200 copies)
The cases are those of tests/video/test_fuzz.py, first decoded by this process, then uploaded to a server of its own and
asked about, as in tests/web/test_fuzz_server.py. Every check made there is made here, and a failed one ends the run.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.provenance import commit, machine  # noqa: E402
from sharp_demo.errors import VideoError  # noqa: E402
from sharp_demo.settings import Settings  # noqa: E402
from sharp_demo.video import sandbox  # noqa: E402
from tests.video.test_fuzz import AIMED, HOSTILE, SOURCES, check, clip_or_error, run, write_source  # noqa: E402
from tests.web import test_fuzz_server as served  # noqa: E402

OUTPUT = ROOT / "docs/results/fuzz-video"


class Peaks:
    """Keeps the highest peak memory, in MB, that a child reported."""

    def __init__(self) -> None:
        self.highest = 0.0

    def watch(self) -> None:
        """Look at every stage that any child does from now on."""
        run = sandbox.Child.run

        def watched(*args: Any) -> sandbox.Ended:
            ended = run(*args)
            self.highest = max(self.highest, ended.report.get("peak_mb") or 0.0)
            return ended

        sandbox.Child.run = watched  # type: ignore[method-assign]

    def take(self) -> float:
        highest, self.highest = self.highest, 0.0
        return highest


def resident_mb() -> float:
    """What this process holds now; its peak also contains the making of the files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


def damaged(copies: int, folder: Path, limits: Settings, peaks: Peaks) -> list[dict[str, Any]]:
    """One row per codec, and one per kind of element that damage is aimed at."""
    rows = []
    for codec in (*SOURCES, *AIMED):
        write_source(codec, folder)  # what the encoder keeps is not the decoder's growth
        before = resident_mb()
        outcomes = run(codec, copies, folder, limits)
        seconds = sorted(took for _, took in outcomes)
        rows.append(
            {
                "codec": codec,
                "clips": len(outcomes),
                "outcomes": dict(Counter(kind for kind, _ in outcomes).most_common()),
                "median_s": seconds[len(seconds) // 2],
                "slowest_s": seconds[-1],
                "parent_growth_mb": resident_mb() - before,
                "child_peak_mb": peaks.take(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def hostile(folder: Path, limits: Settings, peaks: Peaks) -> list[dict[str, Any]]:
    """One row per hostile file."""
    rows = []
    for what, (name, write, expected) in HOSTILE.items():
        path = write(folder / name)
        start = time.monotonic()
        outcome = clip_or_error(path, limits)
        seconds = time.monotonic() - start
        check(outcome, seconds)
        kind = outcome.kind if isinstance(outcome, VideoError) else "decoded"
        assert kind == expected, (what, kind)
        message = str(outcome) if isinstance(outcome, VideoError) else f"by {outcome.info.decoder}"
        rows.append(
            {
                "file": what,
                "bytes": path.stat().st_size,
                "outcome": kind,
                "says": message,
                "seconds": seconds,
                "child_peak_mb": peaks.take(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def through_server(copies: int, folder: Path) -> dict[str, Any]:
    """One row per kind of damage and one of all hostile files, and the server's process before and after."""
    with served.watched_app(folder, rounds=served.WARM_ROUNDS) as server:
        rows, first = [], server.resident_mb()
        for kind in (*SOURCES, *AIMED, "hostile"):
            before, children = server.resident_mb(), len(server.child_peaks())
            files = served.hostile(folder) if kind == "hostile" else served.damaged(kind, copies, folder)
            sent = server.send_all(files)
            if kind == "hostile":
                served.check_hostile(sent)
            seconds = sorted(one.seconds for one in sent)
            rows.append(
                {
                    "kind": kind,
                    "files": len(sent),
                    "results": sum(not one.says for one in sent),
                    "messages": sum(bool(one.says) for one in sent),
                    "median_s": seconds[len(seconds) // 2],
                    "slowest_s": seconds[-1],
                    "server_growth_mb": server.resident_mb() - before,
                    "child_peak_mb": max(server.child_peaks()[children:], default=0.0),
                }
            )
            print(rows[-1], flush=True)
        resident = server.resident_mb()
        took = sorted(server.health_s)
        found = {
            "clients": served.CLIENTS,
            "rows": rows,
            "server_before_mb": first,
            "server_after_mb": resident,
            "children": len(server.child_peaks()),
            "health": {"asked": len(took), "p99_s": took[int(0.99 * (len(took) - 1))], "slowest_s": took[-1]},
        }
        print(found, flush=True)
        server.assert_whole(first)
    return found


def markdown(document: dict[str, Any]) -> str:
    """The tables as Markdown."""
    total = sum(row["clips"] for row in document["damaged"])
    host, server = document["machine"], document["server"]
    health = server["health"]
    lines = [
        "# Damaged and hostile clips",
        "",
        f"`python tools/fuzz_video.py {document['damaged'][0]['clips']}`: {total} damaged copies (flipped bytes, cuts, "
        "wrong box sizes, holes, repeated",
        "pieces; in display matrices, SEI and Matroska elements: noise, extreme numbers, flipped bits, what another "
        "one holds)",
        f"and {len(document['hostile'])} hostile files, decoded one after another by one process on "
        f"{host['cores']} cores of an {host['cpu']}, shared with other work.",
        "It outlived all of them; every one ended with six frames or a typed message.",
        "",
        "| damaged | clips | outcomes | median s | slowest s | growth of the process, MB | child's peak, MB |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in document["damaged"]:
        outcomes = ", ".join(f"{kind} {count}" for kind, count in row["outcomes"].items())
        lines.append(
            f"| {row['codec']} | {row['clips']} | {outcomes} | {row['median_s']:.2f} | {row['slowest_s']:.2f} "
            f"| {row['parent_growth_mb']:.1f} | {row['child_peak_mb']:.0f} |"
        )
    lines += ["", "| file | bytes | outcome | says | s | child's peak, MB |", "|---|---:|---|---|---:|---:|"]
    for row in document["hostile"]:
        lines.append(
            f"| {row['file']} | {row['bytes']:,} | {row['outcome']} | {row['says']} | {row['seconds']:.2f} "
            f"| {row['child_peak_mb']:.0f} |"
        )
    lines += [
        "",
        f"The same files, uploaded to the running app by {server['clients']} clients at once, who then asked for an "
        "answer about them: seconds",
        "from the upload to the answer, waiting for the other clients included. The server was the same process to the "
        f"end; {health['asked']:,} questions",
        f"for its health meanwhile were all answered, 99 in 100 within {health['p99_s']:.2f} s, the slowest in "
        f"{health['slowest_s']:.2f} s. Its resident memory went from",
        f"{server['server_before_mb']:.0f} to {server['server_after_mb']:.0f} MB.",
        "",
        "| sent to the app | files | results | messages | median s | slowest s | growth of the server, MB "
        "| child's peak, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in server["rows"]:
        lines.append(
            f"| {row['kind']} | {row['files']} | {row['results']} | {row['messages']} | {row['median_s']:.2f} "
            f"| {row['slowest_s']:.2f} | {row['server_growth_mb']:.1f} | {row['child_peak_mb']:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("copies", nargs="?", type=int, default=200, help="damaged copies of each kind")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="files to write, without their endings")
    options = parser.parse_args()
    peaks, limits = Peaks(), Settings()
    peaks.watch()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as uploads:
        document = {
            "commit": commit(),
            "machine": machine(),
            "damaged": damaged(options.copies, Path(folder), limits, peaks),
            "hostile": hostile(Path(folder), limits, peaks),
            "server": through_server(options.copies, Path(uploads)),
        }
    options.output.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    options.output.with_suffix(".md").write_text(markdown(document), "utf-8")


if __name__ == "__main__":
    main()
