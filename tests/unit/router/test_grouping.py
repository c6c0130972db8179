"""Which requests are one group, and where a prompt's beginning is."""

from typing import Any

import pytest

from seer_sgl.router.grouping import ALIKE, BLOCK, GroupBook, Placed, Trail
from seer_sgl.types import EngineId

A, B = EngineId("a"), EngineId("b")
LONG = list(range(100, 100 + 2 * BLOCK + 5))
SHORT = [7, 8, 9]


def body(sampling: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"sampling_params": sampling or {}, **fields}


def begin(
    book: GroupBook, ids: list[int], now_s: float = 0.0, named: str | None = None, **fields: Any
) -> Placed:
    return book.begin(body(**fields), ids, named, now_s)[0]


def run_to_end(book: GroupBook, ids: list[int], output: list[int], engine: EngineId = A) -> Placed:
    """A request that comes, and ends."""
    placed, trail = book.begin(body(), ids, None, 0.0)
    book.end(trail, output, placed.group_id, engine)
    return placed


def test_equal_prompts_are_one_group_and_other_prompts_are_not() -> None:
    book = GroupBook()
    first = begin(book, LONG)
    assert begin(book, list(LONG)).group_id == first.group_id
    assert begin(book, [*LONG[:-1], 1]).group_id != first.group_id
    assert begin(book, LONG[:-1]).group_id != first.group_id
    assert begin(book, SHORT).group_id != begin(book, SHORT[:-1]).group_id


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"sampling": {"sampling_seed": 3}}, True),
        ({"sampling": {"max_new_tokens": 9}}, True),
        ({"priority": 3}, True),
        ({"sampling": {"temperature": 0.5}}, False),
        ({"lora_path": "x"}, False),
        ({"extra_key": "x"}, False),
        ({"cache_salt": "x"}, False),
        ({"image_data": ["x"]}, False),
    ],
)
def test_what_makes_a_group(fields: dict[str, Any], same: bool) -> None:
    book = GroupBook()
    first = begin(book, LONG)
    assert (begin(book, LONG, **fields).group_id == first.group_id) is same


def test_a_name_goes_before_everything_else() -> None:
    book = GroupBook()
    assert begin(book, LONG, named="mine").group_id == "mine"
    assert begin(book, SHORT, named="mine").group_id == "mine"
    assert begin(book, LONG).group_id != "mine"


def test_a_group_ends_when_it_is_full() -> None:
    book = GroupBook(group_size=3)
    groups = [begin(book, LONG).group_id for _ in range(7)]
    assert groups == [groups[0]] * 3 + [groups[3]] * 3 + [groups[6]]
    assert len(set(groups)) == 3


def test_samples_that_come_at_once_are_together() -> None:
    book = GroupBook(group_size=3)
    first, _ = book.begin(body(), LONG, None, 0.0, 8)
    assert begin(book, LONG).group_id != first.group_id


def test_a_group_ends_when_it_is_idle() -> None:
    book = GroupBook(window_s=10.0)
    groups = [begin(book, LONG, now_s=now_s).group_id for now_s in (0.0, 9.0, 18.0, 29.0)]
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_group_ends_with_its_weights() -> None:
    book = GroupBook()
    first = begin(book, LONG)
    book.new_epoch()
    second = begin(book, LONG)
    assert second.group_id != first.group_id
    assert second.prompt_key == first.prompt_key


@pytest.mark.parametrize("prompt", [LONG, SHORT])
def test_a_sample_that_goes_on_is_of_its_prompts_group(prompt: list[int]) -> None:
    book = GroupBook()
    output = [40, 41, 42]
    first = run_to_end(book, prompt, output)
    again = begin(book, prompt + output)
    assert again.group_id == first.group_id
    assert again.prompt_key == first.prompt_key
    assert again.shared_tokens == len(prompt)
    assert (again.held_tokens, again.held_on) == (len(prompt) + 3, A)


def test_each_turn_of_a_conversation_goes_on_from_the_last_one() -> None:
    book = GroupBook()
    first = run_to_end(book, LONG, list(range(40)))
    turn = LONG + list(range(40)) + list(range(200, 270))
    second = run_to_end(book, turn, list(range(50)), B)
    assert (second.held_tokens, second.held_on) == (len(LONG) + 40, A)
    third = begin(book, turn + list(range(50)) + [9])
    assert (third.held_tokens, third.held_on) == (len(turn) + 50, B)
    assert first.group_id == second.group_id == third.group_id


def test_what_goes_on_after_new_weights_is_one_group_without_kv() -> None:
    book = GroupBook()
    first = [run_to_end(book, LONG, [token] * 9) for token in (1, 2, 3)]
    book.new_epoch()
    again = [begin(book, LONG + [token] * 9) for token in (1, 2, 3)]
    assert len({placed.group_id for placed in again}) == 1
    assert again[0].group_id != first[0].group_id
    assert {placed.shared_tokens for placed in again} == {len(LONG)}
    assert {(placed.held_tokens, placed.held_on) for placed in again} == {(0, None)}


def test_partial_output_that_never_ended_here_is_known_by_its_prompt() -> None:
    book = GroupBook()
    first = begin(book, LONG)
    again = begin(book, [*LONG, 1, 2])
    assert (again.group_id, again.shared_tokens) == (first.group_id, len(LONG))
    assert (again.held_tokens, again.held_on) == (0, None)


def test_a_few_common_tokens_tell_nothing() -> None:
    book = GroupBook()
    run_to_end(book, [1], [2])
    placed = begin(book, [1, 2, 3])
    assert (placed.held_tokens, placed.shared_tokens) == (0, 3)


def test_another_model_state_has_other_kv() -> None:
    book = GroupBook()
    run_to_end(book, LONG, [1, 2])
    assert begin(book, [*LONG, 1, 2], cache_salt="x").held_tokens == 0


def test_an_engine_that_is_gone_holds_nothing_but_the_pool_does() -> None:
    book = GroupBook()
    run_to_end(book, LONG, [1, 2])
    book.engine_gone(B)
    assert begin(book, [*LONG, 1, 2]).held_on == A
    book.engine_gone(A)
    placed = begin(book, [*LONG, 1, 2])
    assert (placed.held_tokens, placed.held_on) == (len(LONG) + 2, None)
    run_to_end(book, LONG, [1, 2])
    assert begin(book, [*LONG, 1, 2]).held_on == A


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_sgl.router.grouping.MOST_GROUPS", 50)
    monkeypatch.setattr("seer_sgl.router.grouping.MOST_ENDS", 80)
    book = GroupBook()
    for number in range(300):
        prompt = [number] * (BLOCK + number % 70)
        run_to_end(book, prompt, [1] * (number % 90))
        run_to_end(book, SHORT, [number])
    assert len(book) <= 50 + 80
    assert sum(map(len, book._known.values())) <= 50 + 80
    assert begin(book, [299] * (BLOCK + 299 % 70) + [1] * (299 % 90)).held_on == A


def test_many_alike_are_not_searched_for_long() -> None:
    book = GroupBook()
    for number in range(100):
        run_to_end(book, LONG, [number])
    assert max(map(len, book._known.values())) == ALIKE
    assert begin(book, [*LONG, 99]).held_tokens == len(LONG) + 1


def test_a_trail_is_the_same_in_one_go_and_in_parts() -> None:
    whole, parts = Trail([0]), Trail([0])
    whole.follow(LONG * 2)
    for token in LONG * 2:
        parts.follow([token])
    assert (whole.chain, whole.rest, whole.tokens) == (parts.chain, parts.rest, parts.tokens)


def test_what_goes_on_keeps_to_its_own_sampling() -> None:
    book = GroupBook()
    groups = {heat: begin(book, LONG, sampling={"temperature": heat}).group_id for heat in (0.5, 0.7)}
    assert begin(book, [*LONG, 1], sampling={"temperature": 0.5}).group_id == groups[0.5]
    assert begin(book, [*LONG, 2], sampling={"temperature": 0.7}).group_id == groups[0.7]
