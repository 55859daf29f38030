"""Drawn frames against the film on disk, as a page."""

from __future__ import annotations

from typing import Any

from lab.tables.text import percent, table, with_interval


def markdown(document: dict[str, Any]) -> str:
    """One row: what both ways answered, and how many questions differ."""
    setup = document["setup"]
    row = [
        setup["model"]["name"],
        str(document["clips"]),
        str(document["questions"]),
        percent(document["drawn"]),
        percent(document["filmed"]),
        with_interval(document["difference"], document["ci95"], "+"),
        str(len(document["differ"])),
    ]
    header = ["model", "clips", "questions", "drawn frames", "film through `compare`", "difference", "differ"]
    return (
        "\n".join(
            [
                f"# {setup['model']['name']} through the front door",
                "",
                "Exact match in percent, without pruning: from the frames as they are drawn, and from the same clip"
                " written as an H.264 file, decoded, preprocessed and asked as `compare` asks; the difference with its"
                " interval (95 %, by clip), and how many questions were answered differently."
                f" Split `{setup['split']}`, seed {setup['seed']}: clips that no other figure uses.",
                "",
                table(header, [row]),
                "",
                f"Weights `{setup['model']['weights_sha256'][:12]}`, commit `{setup['commit']}`.",
            ]
        )
        + "\n"
    )
