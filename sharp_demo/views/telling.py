"""The frame that says most about a comparison."""

from __future__ import annotations

from collections.abc import Sequence

from sharp_demo.records import Layout, Result
from sharp_demo.views.evidence import Evidence, evidence_frames
from sharp_demo.views.overlay import nearest_frames


def telling_frame(results: Sequence[Result], layout: Layout, evidence: Sequence[Evidence] = ()) -> int:
    """Return the page's frame to show first: where the evidence begins, else where the methods disagree most.

    Evidence that covers every frame points nowhere. Disagreement counts the places that some of the pruning methods
    kept and others did not; of equal frames the first.
    """
    found = evidence_frames(evidence, layout.timestamps)
    if found and len(found) < layout.frames:
        return found[0]
    pruned = [one for one in results if one.tokens.kept < one.tokens.visual]
    places = [nearest_frames(layout, one.layout) for one in pruned]
    disagreement = []
    for frame in range(layout.frames):
        kept = [set(one.kept[place[frame]]) for one, place in zip(pruned, places, strict=True)]
        in_some: set[int] = set().union(*kept)
        in_all = in_some.intersection(*kept)
        disagreement.append(len(in_some - in_all))
    return max(range(layout.frames), key=disagreement.__getitem__)
