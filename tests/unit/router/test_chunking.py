"""Salts of epochs."""

import msgspec
import pytest

from seer_sgl.kv.salts import chunk_salt, epoch_name, new_life
from seer_sgl.router.chunking import Epoch

NOW, NEXT = Epoch(0, "life.0"), Epoch(1, "life.1")


def test_a_salt_tells_epochs_clients_and_lives_apart() -> None:
    names = [epoch_name(life, epoch) for life in ("one", "other") for epoch in (0, 1)]
    salts = {chunk_salt(own, name) for own in (None, "a", "b") for name in names}
    assert len(salts) == 12
    assert chunk_salt("", names[0]) == chunk_salt(None, names[0])
    assert new_life() != new_life()


def test_what_epoch_and_client_say_cannot_be_confused() -> None:
    assert chunk_salt("1", "life.1") != chunk_salt("11", "life.")


def test_groups_of_other_weights_are_other_groups_to_drafts() -> None:
    assert NOW.group("g") == "g"
    assert NEXT.group("g") not in ("g", NOW.group("g"))


def test_switched_off_the_clients_salt_is_left_alone() -> None:
    off = Epoch(3, None)
    assert (off.salt("mine"), off.salt(None)) == ("mine", None)
    assert off.salted(b'{"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, NOW.salt(None)),
        ("mine", NOW.salt("mine")),
        (["a", "b"], [NOW.salt("a"), NOW.salt("b")]),
    ],
)
def test_bodies_of_other_interfaces_get_the_salt(own: object, expected: object) -> None:
    body = msgspec.json.encode({"messages": [{"x": 1.5}], "cache_salt": own})
    salted = msgspec.json.decode(NOW.salted(body))
    assert salted == {"messages": [{"x": 1.5}], "cache_salt": expected}


@pytest.mark.parametrize("body", [b"[1]", b"no json", b'{"cache_salt": 5}'])
def test_a_body_that_is_wrong_stays_so(body: bytes) -> None:
    assert NOW.salted(body) == body
