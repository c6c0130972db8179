"""Which engines may join."""

import msgspec
import pytest

from seer_sgl.router.messages import Register
from seer_sgl.router.roster import Roster
from seer_sgl.testing.engine import FAKE_SPEC
from seer_sgl.types import EngineId


def card(name: str, version: str, history: str = "") -> Register:
    spec = msgspec.structs.replace(FAKE_SPEC, engine_id=EngineId(name))
    return Register(spec, f"http://{name}", "m", "0.5.23", version, {}, history)


@pytest.mark.parametrize(
    ("ours", "theirs", "changed", "refused"),
    [
        ("", "", False, True),
        ("", "", True, False),
        ("x", "", False, False),
        ("", "x", False, False),
        ("x", "y", False, False),
    ],
)
def test_versions_say_nothing_once_weights_have_changed(
    ours: str, theirs: str, changed: bool, refused: bool
) -> None:
    """Be it under the router before this one."""
    roster = Roster()
    roster.register(b"a", card("a", "default", ours), 0.0)
    roster.epoch = int(changed)
    late = card("b", "7", theirs)
    assert bool(roster.objection_to(b"b", late)) == refused
    assert not roster.objection_to(b"b", card("b", "default", theirs))
