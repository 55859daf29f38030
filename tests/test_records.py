"""Records and the JSON made of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sharp_demo.records import Result
from sharp_demo.settings import Settings

STORED = sorted((Settings().assets / "stored").glob("*.json.gz"))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name.split(".")[0])
def test_stored_results_are_the_json_of_their_records(path: Path) -> None:
    """A field that is younger than the file says that nothing was measured, and nothing else changes."""
    for result in json.loads(gzip.decompress(path.read_bytes()))["results"]:
        again = Result.from_dict(result).to_dict()
        younger = {name: again.pop(name) for name in ("encoded_frames", "own_vision") if name not in result}
        younger |= {name: again["tflops"].pop(name) for name in again["tflops"].keys() - result["tflops"].keys()}
        assert json.dumps(again) == json.dumps(result)
        assert not any(younger.values())
