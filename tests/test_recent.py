from __future__ import annotations

from sharp_demo.recent import Recent


def test_the_value_used_longest_ago_goes_first() -> None:
    recent: Recent[int] = Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert recent.items() == [("a", 1), ("c", 3)]
    assert recent.get("b") is None
    recent.put("a", 4)
    recent.put("d", 5)
    assert recent.items() == [("a", 4), ("d", 5)]
    recent.clear()
    assert len(recent) == 0
