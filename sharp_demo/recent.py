"""The one cache of this package: what was used last stays."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Holds the `capacity` most recently used values by key."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """Return the value, which then counts as used last; None where there is none."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Store a value, and drop the one used longest ago where there are too many."""
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self.capacity:
            self._values.popitem(last=False)

    def pop(self, key: Hashable) -> V | None:
        """Drop a value and return it; None where there is none."""
        return self._values.pop(key, None)

    def items(self) -> list[tuple[Hashable, V]]:
        """Return all keys and values, the one used longest ago first."""
        return list(self._values.items())

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()
