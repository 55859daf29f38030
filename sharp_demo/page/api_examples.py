"""How to call this very server from a program, written from what it says about its own endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sharp_demo import strings

CLIP = "clip.mp4"
NAME = "compare"


def api_markdown(api: Mapping[str, Any], base: str) -> str:
    """Return Python and curl examples as Markdown.

    `api` is `Blocks.get_api_info()`, `base` the server's address without a slash at its end.
    """
    parameters = api["named_endpoints"][f"/{NAME}"]["parameters"]
    return (
        f"```python\n{python_example(parameters, base)}```\n\n"
        f"{strings.API_SHELL}\n\n```sh\n{curl_example(parameters, base)}```"
    )


def python_example(parameters: list[dict[str, Any]], base: str) -> str:
    """Return a program that calls the endpoint with gradio_client."""
    lines = [f"    {one['parameter_name']}={_python(one)},\n" for one in parameters]
    return (
        "from gradio_client import Client, handle_file\n\n"
        f'client = Client("{base}")\n'
        "answer = client.predict(\n" + "".join(lines) + f'    api_name="/{NAME}",\n)\n'
        'for result in answer["results"]:\n'
        '    print(result["method"], result["tokens"]["retention"], result["answer"])\n'
    )


def curl_example(parameters: list[dict[str, Any]], base: str) -> str:
    """Return shell commands that upload a clip, start a run and read its events; the last event has the results."""
    values = ", ".join(
        '{"path": "\'"$FILE"\'", "meta": {"_type": "gradio.FileData"}}'
        if one["component"] == "Video"
        else json.dumps(_value(one))
        for one in parameters
    )
    return (
        f"""FILE=$(curl -s -F files=@{CLIP} {base}/gradio_api/upload | tr -d '[]"')\n"""
        f"RUN=$(curl -s {base}/gradio_api/call/{NAME} -H 'Content-Type: application/json' \\\n"
        f"""  -d '{{"data": [{values}]}}' | cut -d'"' -f4)\n"""
        f"curl -s {base}/gradio_api/call/{NAME}/$RUN\n"
    )


def _value(parameter: Mapping[str, Any]) -> Any:
    return parameter["parameter_default"] if parameter["parameter_has_default"] else strings.QUESTION_PLACEHOLDER


def _python(parameter: Mapping[str, Any]) -> str:
    return f'handle_file("{CLIP}")' if parameter["component"] == "Video" else repr(_value(parameter))
