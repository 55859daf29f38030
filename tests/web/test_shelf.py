"""What is kept for visitors: by age and size, and never at another client's cost."""

from sharp_demo.web.shelf import Shelf


def filled(*clients: str, capacity: int = 10_000, share: float = 0.5) -> Shelf[bytes]:
    shelf = Shelf[bytes](capacity, age=60, share=share)
    for number, client in enumerate(clients):
        shelf.put(f"{client}{number}", client, bytes(1000))
    return shelf


def test_seventy_calls_of_one_client_push_out_none_of_anothers():
    shelf = filled("a", *"b" * 70)
    assert shelf.get("a0") is not None
    kept = [number for number in range(1, 71) if shelf.get(f"b{number}") is not None]
    assert kept == [67, 68, 69, 70], "its own oldest go"


def test_of_many_clients_the_one_that_holds_most_gives_way():
    shelf = filled("a", "a", "a", "a", *"bcdefg")
    assert shelf.get("a0") is None
    assert all(shelf.get(f"{client}{number}") is not None for number, client in enumerate("bcdefg", 4))


def test_values_go_with_age_and_when_they_are_dropped():
    now = [0.0]
    shelf = Shelf[str](1000, age=60, clock=lambda: now[0])
    shelf.put("one", "a", "x")
    now[0] = 59
    shelf.put("two", "a", "y")
    assert (shelf.get("one"), shelf.get("two")) == ("x", "y")
    now[0] = 61
    assert (shelf.get("one"), shelf.get("two")) == (None, "y")
    shelf.drop("two")
    assert shelf.get("two") is None


def test_what_is_larger_than_a_share_is_not_kept():
    shelf = filled("a")
    shelf.put("large", "b", bytes(9000))
    assert (shelf.get("large"), shelf.get("a0") is None) == (None, False)
