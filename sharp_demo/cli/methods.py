"""`methods`: every method in three lines."""

from __future__ import annotations


def methods() -> None:
    """List every method: its name here, title, year and paper, where it prunes, what it has to see, what it does."""
    from sharp_demo.pruning import registry
    from sharp_demo.pruning.method import GROUPS

    for method in registry.METHODS:
        source = ", ".join(str(part) for part in (method.title, method.year, method.paper) if part)
        where = "nothing" if method.where == "nowhere" else GROUPS[method.where][0].lower() + GROUPS[method.where][1:]
        traits = [f"prunes {where}", "sees the question" if method.question_aware else "does not see the question"]
        if method().needs_vision:
            traits.append("needs attention of the vision tower")
        if method.engines:
            traits.append(f"offered by {method.engines}")
        print(f"{method.name}: {source}\n    {'; '.join(traits)}\n    {method.summary}")
