"""Which engine a chunk goes to, asked of the placement functions themselves."""

import pytest

from seer_sgl.router.core.placement import PlacementSettings, balanced_prefix, group_home
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import ChunkId, GroupId, RequestId
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import dispatch, engine, finished, play, submitted

NEED = 100
SETTINGS = PlacementSettings(max_spread_requests=4)


def busy(name: str, load: int, reserved: int = 0, slots: int = 64) -> Engine:
    """An engine with `load` chunks of somebody else's that hold `reserved` tokens."""
    it = Engine(engine(name, kv=10_000, slots=slots), reserved_tokens=reserved)
    other = new_request()
    it.chunks = {ChunkId(i): Chunk(ChunkId(i), other, it, 1, 0) for i in range(load)}
    return it


def new_request() -> Request:
    group = Group(GroupId("g"), seq=0, max_new_tokens=100)
    return Request(RequestId("g.0"), group, seq=1, prompt_tokens=50, max_new_tokens=100, divisible=True)


def place(request: Request, engines: list[Engine]) -> str | None:
    chosen = balanced_prefix(request, NEED, engines, SETTINGS)
    return None if chosen is None else chosen.engine_id


@pytest.mark.parametrize(
    ("load_a", "load_b", "chosen"),
    [(0, 0, "a"), (1, 0, "b"), (3, 5, "a"), (5, 3, "b"), (40, 1, "b")],
)
def test_a_new_request_goes_to_the_least_loaded(load_a: int, load_b: int, chosen: str) -> None:
    assert place(new_request(), [busy("a", load_a), busy("b", load_b)]) == chosen


def test_reserved_tokens_decide_between_equal_loads() -> None:
    assert place(new_request(), [busy("a", 2, reserved=900), busy("b", 2, reserved=800)]) == "b"


@pytest.mark.parametrize(
    ("load_home", "load_other", "chosen"),
    [(0, 0, "home"), (4, 0, "home"), (5, 0, "other"), (5, 1, "home"), (64, 60, "other")],
    ids=["idle", "balanced", "unbalanced", "balanced again", "home is full"],
)
def test_the_prefix_wins_while_load_is_balanced(load_home: int, load_other: int, chosen: str) -> None:
    home, other = busy("home", load_home), busy("other", load_other)
    request = new_request()
    request.last_engine, request.generated_tokens = home, 30
    assert place(request, [other, home]) == chosen


def test_few_slots_are_unbalanced_at_a_quarter_of_them() -> None:
    home, other = busy("home", 3, slots=8), busy("other", 0, slots=8)
    request = new_request()
    request.last_engine, request.generated_tokens = home, 30
    assert place(request, [home, other]) == "other"
    assert place(request, [busy("x", 1, slots=8), home]) == "home"


def test_the_longest_prefix_beats_a_siblings_prompt() -> None:
    home, sibling, other = busy("home", 2), busy("sibling", 1), busy("other", 0)
    request = new_request()
    request.group.prompt_on = {sibling, home}
    assert place(request, [home, sibling, other]) == "sibling", "equal prefixes: the less loaded"
    request.last_engine, request.generated_tokens = home, 30
    assert place(request, [other, sibling, home]) == "home"


@pytest.mark.parametrize(
    "engines", [[], [busy("a", 64)], [busy("a", 0, reserved=9_901)]], ids=["none", "slots", "tokens"]
)
def test_no_engine_with_room_is_none(engines: list[Engine]) -> None:
    assert place(new_request(), engines) is None


def test_a_sample_goes_where_a_sibling_has_computed_the_prompt(make_core: MakeCore) -> None:
    play(
        make_core("divided", engine("a"), engine("b")),
        [
            (submitted("h.0"), [dispatch(1, "h.0", 50, on="a")]),
            (submitted("g.0"), [dispatch(2, "g.0", 50, on="b")]),
            (finished(2, 5), [dispatch(3, "g.0", 50, on="b")]),
            (submitted("g.1"), [dispatch(4, "g.1", 50, on="b")]),
        ],
    )


def test_group_home_is_where_the_group_began_whatever_the_load() -> None:
    home, other, gone = busy("home", 9), busy("other", 0), busy("gone", 0)
    request = new_request()

    def home_of(engines: list[Engine]) -> Engine | None:
        return group_home(request, NEED, engines, SETTINGS)

    assert home_of([home, other]) is other, "a group without a home: the least loaded"
    request.group.home = home
    assert home_of([home, other]) is home
    request.group.home = gone
    assert home_of([home, other]) is other
    assert home_of([]) is None
