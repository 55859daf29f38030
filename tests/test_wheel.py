"""The wheel: only the package, and whole; it answers in a clean environment, and says what it lacks."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from the files that git tracks or would track, so that nothing left over gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("assets/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands of a new environment with the wheel, which sees this one's dependencies but not the checkout."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    paths = {key: Path(sysconfig.get_path(key, vars={"base": str(folder)})) for key in ("purelib", "scripts")}
    (paths["purelib"] / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(paths["scripts"] / "python"), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True)
    return paths["scripts"]


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "PYTHON"))}
    return subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True)


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {"sharp_demo", "sharp_demo-0.1.0.dist-info"}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "sharp_demo"]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in tracked if (ROOT / name).is_file()} == {
        name for name in names if name.startswith("sharp_demo/")
    }


def test_the_wheel_declares_its_groups(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    about = message_from_string(archive.read("sharp_demo-0.1.0.dist-info/METADATA").decode())
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("torch") for line in needed)
    assert about.get_all("Provides-Extra") == ["dev", "gpu"]
    (gpu,) = (line for line in about.get_all("Requires-Dist", []) if 'extra == "gpu"' in line)
    assert gpu.startswith("flash-attn")


def test_the_six_lines_run_from_the_wheel(bin_folder: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example += "print(sharp.__file__)\n"
    (tmp_path / "six.py").write_text(example.replace('"assets/', f'"{ROOT}/assets/'))
    done = run([bin_folder / "python", "six.py"], tmp_path, SHARP_ASSETS=str(ROOT / "assets"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("ShaRP: 157 of 784")
    assert Path(lines[-1]).is_relative_to(bin_folder.parent)
    without = run([bin_folder / "python", "six.py"], tmp_path)
    assert "set SHARP_ASSETS to the assets folder of a checkout" in without.stderr.splitlines()[-1]


def test_the_laboratory_is_refused_in_one_line(bin_folder: Path, tmp_path: Path) -> None:
    done = run([bin_folder / "sharp-demo", "evaluate"], tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "evaluate needs a checkout of the repository" in line
