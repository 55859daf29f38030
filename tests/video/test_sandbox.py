"""The child is limited, watched and replaceable; the parent outlives whatever happens to it."""

import ast
import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sharp_demo import doctor
from sharp_demo.errors import VideoError
from sharp_demo.settings import Settings
from sharp_demo.video import Reader, decode, probe, sandbox
from tests.video.clips import read_number, write_clip
from tests.video.test_decode import DECODERS

ROOT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def replace_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Do something else than the worker in some stages; its limits are set as always."""
    bodies: dict[str, str] = {}

    def replace(stage: str, body: str, before: str = "") -> None:
        bodies[stage] = body
        code = worker_with(bodies, before)
        monkeypatch.setattr(sandbox, "command", lambda preload: [sys.executable, "-c", code])

    return replace


def worker_with(bodies: dict[str, str], before: str = "") -> str:
    """Return the code of a worker whose stages in `bodies` do something else."""
    functions = "".join(f"def replaced_{stage}(job):\n    {body}\n" for stage, body in bodies.items())
    return (
        f"from sharp_demo.video import worker\n{before}\n{functions}real = worker.run\n"
        "def run(stage, job):\n"
        "    other = globals().get('replaced_' + stage)\n"
        "    return other(job) if other else real(stage, job)\n"
        "worker.run = run\nworker.main()"
    )


def failure(path: Path, settings: Settings) -> VideoError:
    with pytest.raises(VideoError) as refused:
        decode(path, 4, settings)
    return refused.value


def test_a_decoder_killed_in_its_work_is_an_error_at_once_and_the_next_call_works(
    h264, limits, replace_stage, monkeypatch
):
    decoding: list[sandbox.Child] = []
    real = sandbox.Child.run

    def noted(child, stage, *rest):
        if stage == DECODERS[0]:
            decoding.append(child)
        return real(child, stage, *rest)

    monkeypatch.setattr(sandbox.Child, "run", noted)
    replace_stage(DECODERS[0], SLEEP)
    errors: list[VideoError] = []
    thread = threading.Thread(target=lambda: errors.append(failure(h264, limits)))
    thread.start()
    while not decoding:
        time.sleep(0.01)
    time.sleep(0.1)
    killed = time.monotonic()
    os.kill(decoding[0].process.pid, 9)
    thread.join(10)
    assert time.monotonic() - killed < 2
    assert errors[0].kind == "killed"
    assert "killed from outside" in str(errors[0])
    monkeypatch.undo()
    assert decode(h264, 4, limits).frames.shape[0] == 4


@pytest.mark.parametrize(
    "code", ["import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "import os; os.abort()", "raise SystemExit(3)"]
)
def test_a_crash_of_the_first_decoder_leaves_the_file_to_the_next(code, h264, limits, replace_stage):
    replace_stage(DECODERS[0], code)
    clip = decode(h264, 10, limits)
    assert clip.info.decoder == DECODERS[1]
    assert [read_number(frame) for frame in clip.frames] == list(range(1, 20, 2))


def test_a_hanging_decoder_leaves_time_for_the_next(h264, limits, replace_stage):
    replace_stage(DECODERS[0], SLEEP)
    start = time.monotonic()
    clip = decode(h264, 4, limits.model_copy(update={"decode_timeout_s": 6.0}))
    assert clip.info.decoder == DECODERS[1]
    assert time.monotonic() - start < 6


def test_crashes_of_all_decoders_are_one_error(h264, limits, replace_stage, caplog):
    for decoder in DECODERS:
        replace_stage(decoder, "import os; os.abort()")
    with caplog.at_level("INFO", "sharp_demo.video"):
        error = failure(h264, limits)
    assert (error.kind, "crashes the decoders" in str(error)) == ("crashed", True)
    # What went wrong with each is not lost.
    assert [record.getMessage().split()[0] for record in caplog.records] == DECODERS
    assert "SIGABRT" in caplog.text


def test_a_crash_of_the_probe_is_an_error(h264, limits, replace_stage):
    replace_stage("scan", "import os; os.abort()")
    assert failure(h264, limits).kind == "crashed"


@pytest.mark.parametrize("stage", ["scan", "all"])
def test_timeout(stage, h264, limits, replace_stage):
    for name in ["scan"] if stage == "scan" else DECODERS:
        replace_stage(name, SLEEP)
    start = time.monotonic()
    error = failure(h264, limits.model_copy(update={"decode_timeout_s": 1.0}))
    assert time.monotonic() - start < 2
    assert (error.kind, "longer than 1 s" in str(error)) == ("timeout", True)


def test_processor_time_is_limited(h264, limits, replace_stage):
    replace_stage("scan", "while True: pass")
    error = failure(h264, limits.model_copy(update={"decode_cpu_s": 1}))
    assert (error.kind, "over 1 s of processor time" in str(error)) == ("cpu", True)


def test_memory_is_limited(h264, limits, replace_stage):
    for decoder in DECODERS:
        replace_stage(decoder, "return {'x': len(bytearray(2 << 30))}")
    error = failure(h264, limits.model_copy(update={"decode_memory_mb": 1024}))
    assert (error.kind, "the 1024 MB it may use" in str(error)) == ("memory", True)


def test_a_real_video_that_needs_too_much_memory(tmp_path, limits):
    path = write_clip(tmp_path / "4k.mp4", frames=8, size=(3840, 2160))
    error = failure(path, limits.model_copy(update={"decode_memory_mb": 256}))
    assert (error.kind, "the 256 MB it may use" in str(error)) == ("memory", True)


def test_output_is_limited(h264, limits, replace_stage):
    for decoder in DECODERS:
        replace_stage(decoder, "open('frames.npy', 'wb').write(bytes(64 << 20))")
    error = failure(h264, limits.model_copy(update={"decode_output_mb": 16}))
    assert (error.kind, "disk is full" in str(error)) == ("unavailable", True)


@pytest.mark.parametrize(
    "body",
    [
        "return {}",
        "return {'times': [0, 1, 2, 3]}",
        "open('frames.npy', 'wb').write(b'junk'); return {'times': [0, 1, 2, 3]}",
        "import numpy as np; np.save('frames.npy', np.zeros((4, 2, 2, 3), 'u1')); return {'times': [0, 1, 2, 3]}",
        "import numpy as np; np.save('frames.npy', np.array([{}])); return {'times': [0, 1, 2, 3]}",
        "import os; os.symlink('/etc/passwd', 'frames.npy'); return {'times': [0, 1, 2, 3]}",
    ],
)
def test_nonsense_from_a_child_is_not_believed(body, h264, limits, replace_stage):
    for decoder in DECODERS:
        # As on a system that shuts nobody in.
        replace_stage(decoder, body, "worker.isolate = lambda *_: []")
    assert failure(h264, limits).kind == "crashed"


@pytest.mark.parametrize(
    "report",
    ["[]", "{}", '"x"', "null", '{"limits_refused": 3}', '{"limits_refused": null}', "[" * 10_000],
    ids=lambda report: report[:24],
)
@pytest.mark.parametrize("stage", ["scan", "decoder"])
def test_a_report_of_another_form_is_not_believed(report, stage, h264, limits, replace_stage):
    code = f"import os; open('report.json', 'w').write({report!r}); os._exit(0)"
    for name in ("scan",) if stage == "scan" else DECODERS:
        replace_stage(name, code)
    assert failure(h264, limits).kind == "crashed"


# As root of a user namespace where the tests do not run as root.
OWN_MOUNTS = ["unshare", "--mount", *([] if hasattr(os, "getuid") and os.getuid() == 0 else ["--map-root-user"])]


def test_a_full_disk_is_not_the_fault_of_the_file(h264, tmp_path):
    if not shutil.which("unshare") or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode != 0:
        pytest.skip("a small disk needs a mount namespace, which this system does not give")
    script = f"mount -t tmpfs -o size=400k tmpfs {tmp_path} && exec {sys.executable} -c '{DECODE_THERE}' {h264}"
    done = subprocess.run(
        [*OWN_MOUNTS, "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split(None, 1)[0] == "unavailable", done.stderr[-2000:]
    assert "disk is full" in done.stdout


DECODE_THERE = """
import sys
from sharp_demo.errors import VideoError
from sharp_demo.settings import Settings
from sharp_demo.video import decode
try:
    print("decoded", decode(sys.argv[1], 32, Settings()).frames.shape)
except VideoError as error:
    print(error.kind, error)
"""


def test_limits_and_environment_of_the_child(h264, limits, replace_stage, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hf_123")
    code = (
        "import resource as r, os; from sharp_demo.errors import VideoError; "
        "raise VideoError('damaged', repr([[r.getrlimit(k)[0] for k in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_NOFILE, "
        "r.RLIMIT_CORE)], os.getsid(0) == os.getpid(), 'SECRET_TOKEN' in os.environ, os.listdir(), "
        "len(os.listdir('/proc/self/fd'))]))"
    )
    replace_stage("scan", code)
    told = ast.literal_eval(str(failure(h264, limits)))
    assert told[:4] == [[3072 << 20, 20, 64, 0], True, False, []]
    assert told[4] <= 5  # stdin, output to nowhere, stderr, answers, and the listing itself


def test_an_orphan_ends_itself(tmp_path):
    limits = {"memory_mb": 1024, "cpu_s": 5, "file_mb": 1, "wall_s": 0.2}
    job = {"stage": "scan", "job": {"path": os.devnull}, "limits": limits, "folder": str(tmp_path)}
    orphan = subprocess.Popen(
        [sys.executable, "-c", worker_with({"scan": SLEEP})],
        stdin=subprocess.PIPE,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    orphan.stdin.write(json.dumps(job).encode() + b"\n")
    orphan.stdin.flush()
    assert orphan.wait(10) == -14
    orphan.stdin.close()


def _missing() -> list[str]:
    """What this system does not offer for shutting a child in."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from sharp_demo.video.isolation import isolate; print(*isolate(os.devnull, os.getcwd(), ''))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


MISSING = _missing()
LANDLOCK = 444  # landlock_create_ruleset; without a ruleset, and with the flag 1, it answers with its version


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shuts a decoder in")
def test_nothing_is_called_missing_that_the_kernel_offers():
    """The tests below are skipped by what the product says is missing: the kernel is asked here without it."""
    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    offered = {
        "network": platform.machine() in ("x86_64", "aarch64") and "Seccomp:" in Path("/proc/self/status").read_text(),
        "files": libc.syscall(LANDLOCK, None, ctypes.c_size_t(0), 1) >= 1,
    }
    assert set(MISSING) == {what for what, there in offered.items() if not there}


def _try_in_child(attempt: str, path: Path, limits: Settings, replace_stage: Callable[[str, str], None]) -> str:
    """Return what the scan's child is told when it tries something: the name of the error, or "done"."""
    body = (
        "from sharp_demo.errors import VideoError\n"
        f"    try:\n        {attempt}\n        said = 'done'\n"
        "    except OSError as error:\n        said = type(error).__name__\n"
        "    raise VideoError('damaged', said)"
    )
    replace_stage("scan", body)
    return str(failure(path, limits))


@pytest.mark.skipif("network" in MISSING, reason="this kernel has no seccomp filters")
@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.socket()",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['/bin/true'])",
    ],
)
def test_the_child_has_no_network_and_starts_no_program(attempt, h264, limits, replace_stage):
    assert _try_in_child(attempt, h264, limits, replace_stage) == "PermissionError"


@pytest.mark.skipif("files" in MISSING, reason="this kernel has no Landlock")
@pytest.mark.parametrize(
    "attempt",
    [
        "open('/etc/passwd')",
        "open({root!r} + '/README.md')",
        "open({other!r}, 'rb')",
        "open({path!r}, 'r+b')",
        "open({folder!r} + '/new', 'w')",
        "import os; os.listdir({folder!r})",
        "import os; os.symlink('/etc/passwd', 'link')",
        "import os; os.kill(os.getppid(), 0)",
        "import os; open(f'/proc/{{os.getppid()}}/environ', 'rb')",
    ],
)
def test_the_child_reaches_no_file_but_its_own(attempt, h264, limits, replace_stage):
    other = h264.with_name("other.mp4")
    other.write_bytes(b"another visitor's")
    attempt = attempt.format(root=str(ROOT), other=str(other), path=str(h264), folder=str(h264.parent))
    assert _try_in_child(attempt, h264, limits, replace_stage) == "PermissionError"


def test_the_child_may_do_its_work(h264, limits, replace_stage):
    attempt = f"open({str(h264)!r}, 'rb').read(); open('made', 'w').write('x'); import numpy, av"
    assert _try_in_child(attempt, h264, limits, replace_stage) == "done"


def test_what_is_missing_is_told(h264, limits, monkeypatch):
    code = (
        "import sys; sys.platform = 'darwin'\n"
        "from sharp_demo.video.isolation import isolate; print(isolate('', '', ''))"
    )
    assert ast.literal_eval(_ask_child(code)) == ["network", "files"]
    finding = doctor._isolation()
    assert (finding.name, finding.status) == ("isolation", "warn" if MISSING else "ok")
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "network files\n", "")
    )
    finding = doctor._isolation()
    assert finding.status == "warn"
    assert "seccomp" in finding.detail
    assert "Landlock" in finding.detail


def _ask_child(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_child_starts_light():
    code = "import sharp_demo.video.worker, sys; print([m for m in sys.modules if '.' not in m])"
    loaded = set(ast.literal_eval(_ask_child(code)))
    assert not loaded & {"torch", "transformers", "gradio", "pydantic", "av", "cv2", "decord"}


def test_a_system_without_some_limits_says_which():
    code = (
        "import sharp_demo.video.worker as w; real = w.resource.setrlimit\n"
        "def refuse(limit, value):\n"
        "    if limit == w.resource.RLIMIT_AS: raise ValueError\n"
        "    real(limit, value)\n"
        "w.resource.setrlimit = refuse; print(w.set_limits(1024, 5, 1, 5.0))"
    )
    assert ast.literal_eval(_ask_child(code)) == ["memory"]


def test_a_system_without_the_resource_module_still_starts():
    code = (
        "import sys; sys.modules['resource'] = None\n"
        "import sharp_demo.video.worker as w; print(w.set_limits(1024, 5, 1, 5.0))"
    )
    assert ast.literal_eval(_ask_child(code)) == ["memory", "cpu", "file size", "open files", "core"]


def test_a_full_temporary_folder_is_an_error(h264, limits, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    error = failure(h264, limits)
    assert (error.kind, "no temporary folder" in str(error)) == ("unavailable", True)


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    black = np.zeros((8192, 8192, 3), np.uint8)
    return write_clip(tmp_path_factory.mktemp("bomb") / "bomb.mp4", frames=[black] * 4, size=(8192, 8192))


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Peak memory in MB of every decoder child that a test starts."""
    seen: list[int] = []
    real = sandbox.Child.run

    def measured(*args):
        ended = real(*args)
        seen.append(ended.report["peak_mb"])
        return ended

    monkeypatch.setattr(sandbox.Child, "run", measured)
    return seen


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_resolution_bomb_is_small_even_with_raised_limits(decoder, bomb, only, peaks):
    only(decoder)
    clip = decode(bomb, 8, Settings(max_side=8192, max_pixels=8192 * 8192, decode_memory_mb=4096))
    assert clip.frames.shape == (8, 768, 768, 3)
    assert clip.info.distinct_frames == 4
    assert len(peaks) == 2
    assert max(peaks) < 2000


def test_probe_of_a_bomb_is_cheap(bomb, limits):
    start = time.monotonic()
    with pytest.raises(VideoError, match="8192 x 8192"):
        probe(bomb, limits)
    assert time.monotonic() - start < 3


def test_the_peak_is_the_childs_own(h264, limits, peaks):
    """A large parent must not be counted: what the kernel reports as the maximum survives fork and exec."""
    ballast = np.ones(400 << 20, np.uint8)
    decode(h264, 4, limits)
    assert ballast.nbytes >> 20 == 400
    assert all(10 < peak < 300 for peak in peaks), peaks


# -- a child that waits ----------------------------------------------------------------------------------------------


@pytest.fixture
def reader(limits) -> Iterator[Reader]:
    reader = Reader(limits)
    yield reader
    reader.close()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[sandbox.Child]:
    """Every child that a test starts."""
    children: list[sandbox.Child] = []
    real = sandbox.Child.__init__

    def noted(child, *args):
        real(child, *args)
        children.append(child)

    monkeypatch.setattr(sandbox.Child, "__init__", noted)
    return children


def test_one_child_scans_and_decodes_one_file_and_no_other(h264, reader, started):
    plain = reader.decode(h264, 4)
    assert len(started) == 1
    assert not started[0].alive
    reader.warm()
    reader.warm()
    assert len(started) == 2, "one that waits is enough"
    assert np.array_equal(reader.decode(h264, 4).frames, plain.frames)
    assert len(started) == 2, "the one that waited was used"
    assert not started[1].alive
    assert reader.probe(h264).frame_count == 20
    assert len(started) == 3


def test_a_waiting_child_is_shut_in_as_any_other(h264, reader, started, monkeypatch):
    """Its imports start no thread, which what is set later would not hold."""
    reports = []
    real = sandbox.Child.run

    def noted(*args):
        ended = real(*args)
        reports.append(ended.report)
        return ended

    monkeypatch.setattr(sandbox.Child, "run", noted)
    reader.warm()
    reader.decode(h264, 4)
    assert [report["limits_refused"] for report in reports] == [MISSING, MISSING]


def test_a_waiting_child_that_dies_is_not_missed(h264, reader, started):
    reader.warm()
    os.kill(started[0].process.pid, 9)
    started[0].process.wait(5)
    assert reader.decode(h264, 4).frames.shape[0] == 4
    assert len(started) == 2


def test_where_no_child_can_be_started_the_next_video_says_so(h264, reader, monkeypatch):
    monkeypatch.setattr(sandbox, "command", lambda preload: ["/nowhere/python"])
    reader.warm()
    with pytest.raises(VideoError, match="decoder does not start") as refused:
        reader.decode(h264, 4)
    assert refused.value.kind == "unavailable"


def test_a_waiting_child_ends_with_its_parent(tmp_path):
    """Also where the parent is killed: its end of the pipe goes with it."""
    code = (
        "from sharp_demo.settings import Settings; from sharp_demo.video import Reader; import time\n"
        "reader = Reader(Settings()); reader.warm(); print(reader._spare.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in _state(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"
