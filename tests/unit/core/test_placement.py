"""Which engine a chunk goes to, asked of the placement functions themselves."""

import msgspec
import pytest

from seer_sgl.router.core.fleet import LOOKS, Fleet
from seer_sgl.router.core.placement import PlacementSettings, balanced_prefix, group_home, least_loaded
from seer_sgl.router.core.state import Chunk, Engine, Group, Request
from seer_sgl.types import ChunkId, EngineId, GroupId, RequestId
from tests.unit.core.conftest import MakeCore
from tests.unit.core.table import dispatch, engine, finished, play, submitted

NEED = 100
SETTINGS = PlacementSettings(max_spread_requests=4)


class Fleets:
    """A fleet whose engines have chunks of somebody else's, and are known by name."""

    def __init__(self, reserves: bool = True) -> None:
        self.fleet = Fleet(reserves=reserves)
        self.chunks = 0

    def busy(self, name: str, load: int, reserved: int = 0, slots: int = 64) -> Engine:
        """An engine with `load` chunks, of which the last holds `reserved` tokens."""
        spec = engine(name, kv=10_000, slots=slots)
        self.fleet.join(spec)
        it = self.fleet.engines[spec.engine_id]
        for left in reversed(range(load)):
            self.chunks += 1
            chunk = Chunk(ChunkId(self.chunks), new_request(), it, 1, 0 if left else reserved)
            self.fleet.take(chunk)
        return it

    def place(self, request: Request) -> str | None:
        chosen = balanced_prefix(request, NEED, self.fleet, SETTINGS)
        return None if chosen is None else chosen.engine_id


def new_request() -> Request:
    group = Group(GroupId("g"), seq=0, max_new_tokens=100)
    return Request(RequestId("g.0"), group, seq=1, prompt_tokens=50, max_new_tokens=100, divisible=True)


@pytest.fixture
def fleets() -> Fleets:
    return Fleets()


@pytest.mark.parametrize(
    ("load_a", "load_b", "chosen"),
    [(0, 0, "a"), (1, 0, "b"), (3, 5, "a"), (5, 3, "b"), (40, 1, "b")],
)
def test_a_new_request_goes_to_the_least_loaded(
    fleets: Fleets, load_a: int, load_b: int, chosen: str
) -> None:
    fleets.busy("a", load_a)
    fleets.busy("b", load_b)
    assert fleets.place(new_request()) == chosen


def test_reserved_tokens_decide_between_equal_loads(fleets: Fleets) -> None:
    fleets.busy("a", 2, reserved=900)
    fleets.busy("b", 2, reserved=800)
    assert fleets.place(new_request()) == "b"


@pytest.mark.parametrize(
    ("load_home", "load_other", "chosen"),
    [(0, 0, "home"), (4, 0, "home"), (5, 0, "other"), (5, 1, "home"), (64, 60, "other")],
    ids=["idle", "balanced", "unbalanced", "balanced again", "home is full"],
)
def test_the_prefix_wins_while_load_is_balanced(
    fleets: Fleets, load_home: int, load_other: int, chosen: str
) -> None:
    fleets.busy("other", load_other)
    request = new_request()
    request.last_engine, request.generated_tokens = fleets.busy("home", load_home), 30
    assert fleets.place(request) == chosen


@pytest.mark.parametrize(("load_other", "chosen"), [(0, "other"), (1, "home")])
def test_few_slots_are_unbalanced_at_a_quarter_of_them(
    fleets: Fleets, load_other: int, chosen: str
) -> None:
    request = new_request()
    request.last_engine, request.generated_tokens = fleets.busy("home", 3, slots=8), 30
    fleets.busy("other", load_other, slots=8)
    assert fleets.place(request) == chosen


def test_the_longest_prefix_beats_a_siblings_prompt(fleets: Fleets) -> None:
    fleets.busy("other", 0)
    sibling, home = fleets.busy("sibling", 1), fleets.busy("home", 2)
    request = new_request()
    request.group.prompt_on = {sibling, home}
    assert fleets.place(request) == "sibling", "equal prefixes: the less loaded"
    request.last_engine, request.generated_tokens = home, 30
    assert fleets.place(request) == "home"


def test_an_engine_that_is_gone_or_held_gets_nothing(fleets: Fleets) -> None:
    home, other = fleets.busy("home", 0), fleets.busy("other", 1)
    request = new_request()
    request.last_engine, request.generated_tokens = home, 30
    fleets.fleet.hold_for(NEED)
    assert fleets.place(request) == "other"
    fleets.fleet.let_go()
    assert fleets.place(request) == "home"
    fleets.fleet.leave(home)
    assert fleets.place(request) == other.engine_id


@pytest.mark.parametrize("full", [[], [(64, 0)], [(1, 9_901)]], ids=["none", "slots", "tokens"])
def test_no_engine_with_room_is_none(fleets: Fleets, full: list[tuple[int, int]]) -> None:
    for load, reserved in full:
        fleets.busy("a", load, reserved)
    assert fleets.place(new_request()) is None


def test_where_the_least_loaded_are_full_the_one_with_most_room_is_taken(fleets: Fleets) -> None:
    for number in range(LOOKS + 2):
        fleets.busy(f"full{number}", 1, reserved=9_950)
    fleets.busy("some", 2, reserved=9_000)
    fleets.busy("most", 3, reserved=8_000)
    assert fleets.place(new_request()) == "most"
    fleets.busy("idle", 0)
    assert fleets.place(new_request()) == "idle"


def test_least_loaded_counts_requests_where_nothing_is_reserved() -> None:
    fleets = Fleets(reserves=False)
    home, other = fleets.busy("home", 70), fleets.busy("other", 69)
    request = new_request()
    request.last_engine = home
    assert least_loaded(request, 1 << 40, fleets.fleet, SETTINGS) is other


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
    fleets = Fleets(reserves=False)
    request = new_request()

    def home_of() -> Engine | None:
        return group_home(request, NEED, fleets.fleet, SETTINGS)

    assert home_of() is None
    home, other = fleets.busy("home", 9), fleets.busy("other", 0)
    assert home_of() is other, "a group without a home: the least loaded"
    request.group.home = home
    assert home_of() is home
    for chunk in list(home.chunks.values()):
        fleets.fleet.release(chunk)
    fleets.fleet.leave(home)
    assert home_of() is other


def test_a_prompt_that_was_begun_before_goes_where_its_kv_is(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), engine("b"), placement=PlacementSettings(32, 0))
    again = msgspec.structs.replace(submitted("g.0", prompt=80), shared_tokens=10, held_tokens=79)
    on_b = msgspec.structs.replace(again, held_on=EngineId("b"))
    play(core, [(on_b, [dispatch(1, "g.0", 50, on="b")])])


def test_what_was_begun_on_an_engine_that_is_gone_is_pulled(make_core: MakeCore) -> None:
    core = make_core("divided", engine("a"), placement=PlacementSettings(32, 10))
    again = msgspec.structs.replace(submitted("g.0", prompt=80), shared_tokens=10, held_tokens=79)
    gone = msgspec.structs.replace(again, held_on=EngineId("gone"))
    play(core, [(gone, [dispatch(1, "g.0", 50, pulled=79)])])
    play(core, [(finished(1, 50), [dispatch(2, "g.0", 50)])])
    # The group's own prompt is here now, and no more of what a sibling goes on from.
    sibling = msgspec.structs.replace(submitted("g.1", prompt=90), shared_tokens=10, held_tokens=85)
    play(core, [(sibling, [dispatch(3, "g.1", 50, pulled=75)])])
