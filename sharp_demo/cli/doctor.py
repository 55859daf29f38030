"""`doctor`: can the app run here?"""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from sharp_demo.cli.text import stdout, table_of


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> int:
    """Report device, dtype, attention backend, decoders, models and limits; exit 1 if the app cannot run here."""
    from dataclasses import asdict

    from sharp_demo.doctor import can_run, examine
    from sharp_demo.settings import read_settings

    findings = examine(read_settings())
    usable = can_run(findings)
    if json_:
        print(json.dumps({"can_run": usable, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if usable else 1
    table = table_of("", "", "", "")
    for before, finding in zip([None, *findings], findings, strict=False):
        first = before is None or before.topic != finding.topic
        table.add_row(finding.topic if first else "", finding.name, finding.status, Text(finding.detail))
    console = stdout()
    console.print(table)
    print("The app can run here." if usable else "The app cannot run here: see the lines marked fail.")
    return 0 if usable else 1
