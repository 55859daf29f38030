"""The menu of methods, grouped by where they prune."""

from __future__ import annotations

from sharp_demo import strings
from sharp_demo.pruning import registry
from sharp_demo.pruning.method import GROUPS, Method


def grouped(methods: tuple[type[Method], ...] | None = None) -> list[tuple[str, list[type[Method]]]]:
    """Titles of `GROUPS` with their methods, in the registry's order; empty groups are left out."""
    known = registry.METHODS if methods is None else methods
    found = [(title, [one for one in known if one.group() == group]) for group, title in GROUPS.items()]
    return [(title, members) for title, members in found if members]


def described() -> list[tuple[str, list[str]]]:
    """The groups with one line of Markdown per method."""
    return [
        (title, [strings.method_line(one.title, one.summary, one.paper, one.year) for one in members])
        for title, members in grouped()
    ]


def method_choices() -> list[tuple[str, str]]:
    """(title, name) of every method, group after group, as a checkbox group takes them."""
    return [(method.title, method.name) for _, members in grouped() for method in members]


def group_css(elem_id: str) -> str:
    """Headings inside one checkbox group, which Gradio itself does not have: each before its group's first label.

    The group scrolls: the reference and what the papers compare stand first, the others do not push the page down.

    The heading is decoration: the text after the slash is what a screen reader says, nothing.
    """
    rules, place = [], 1
    for title, members in grouped():
        first = f"#{elem_id} .wrap > label:nth-of-type({place})"
        beside = f", #{elem_id} .wrap > label:nth-of-type({place + 1})" if len(members) > 1 else ""
        rules.append(f"{first} {{ grid-column: 1; }}")
        rules.append(f"{first}{beside} {{ margin-top: 20px; }}")
        rules.append(f'{first}::before {{ content: "{title}" / ""; }}')
        place += len(members)
    heading = f"#{elem_id} .wrap > label::before"
    return "\n".join(
        [
            f"#{elem_id} .wrap {{ display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 4px 8px;",
            "  max-height: 330px; overflow-y: auto; }",
            f"#{elem_id} .wrap > label {{ position: relative; padding: 4px 8px; }}",
            f"{heading} {{ position: absolute; left: 0; top: -19px; font-size: 12px; font-weight: 600;",
            "  white-space: nowrap; color: var(--body-text-color-subdued); }",
            *rules,
        ]
    )
