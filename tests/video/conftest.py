"""Fixtures for the video tests."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sharp_demo.settings import Settings
from sharp_demo.video import reader
from tests.video.clips import write_clip


@pytest.fixture(scope="session")
def limits() -> Settings:
    """The limits of a default deployment."""
    return Settings()


@pytest.fixture(scope="session")
def h264(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 numbered H.264 frames at 10 per second, two seconds."""
    return write_clip(tmp_path_factory.mktemp("clips") / "plain.mp4")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Restrict decoding to the decoder given."""
    return lambda decoder: monkeypatch.setattr(reader, "decoders_for", lambda *_: [decoder])


@pytest.fixture(autouse=True)
def scratch_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test decodes below its own folder, which must be empty again at its end."""
    root = tmp_path / "scratch"
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    yield root
    assert list(root.iterdir()) == []
