"""Recognising groups, judged by plain lists; and that it never changes a result."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from seer_sgl.router.grouping import BLOCK, GroupBook
from seer_sgl.testing.engine import continuation
from seer_sgl.types import EngineId
from tests.unit.router.conftest import cluster, run, server

ENGINES = [EngineId("a"), EngineId("b")]
stems = st.integers(0, 2).map(lambda stem: [stem] * (BLOCK + 9 * stem))
some_ids = st.lists(st.integers(0, 3), max_size=3)
many_ids = st.lists(st.integers(0, 1), min_size=BLOCK, max_size=2 * BLOCK)
prompts = st.tuples(stems, st.one_of(some_ids, many_ids)).map(lambda parts: parts[0] + parts[1])
told = st.one_of(
    st.tuples(st.just("run"), prompts, some_ids, st.integers(0, 1)),
    st.tuples(st.just("again"), st.integers(0, 50), some_ids, st.integers(0, 1)),
    st.tuples(st.just("gone"), st.integers(0, 1)),
    st.just(("epoch",)),
    st.tuples(st.just("later"), st.floats(0, 20)),
)


class Plain:
    """What ended where, as a list that is searched from end to end."""

    def __init__(self) -> None:
        self.ended: list[tuple[list[int], str | None]] = []

    def longest(self, ids: list[int]) -> tuple[int, set[str | None]]:
        fitting = [
            (len(held), engine)
            for held, engine in self.ended
            if ids[: len(held)] == held and (len(held) >= BLOCK or held == ids)
        ]
        most = max((tokens for tokens, _ in fitting), default=0)
        return most, {engine for tokens, engine in fitting if tokens == most}


@settings(max_examples=150, deadline=None)
@given(st.lists(told, min_size=5, max_size=40))
def test_the_longest_beginning_is_found(story: list[tuple[Any, ...]]) -> None:
    book, plain = GroupBook(group_size=3, window_s=10.0), Plain()
    now_s, epoch = 0.0, 0
    groups: dict[str, tuple[int, tuple[int, ...]]] = {}
    for step in story:
        match step:
            case ("epoch",):
                book.new_epoch()
                plain.ended.clear()
                epoch += 1
            case ("later", seconds):
                now_s += seconds
            case ("gone", which):
                book.engine_gone(ENGINES[which])
                plain.ended = [(i, None if e == ENGINES[which] else e) for i, e in plain.ended]
            case (_, begun, output, which):
                ids = begun
                if isinstance(begun, int):
                    if not plain.ended:
                        continue
                    ids = plain.ended[begun % len(plain.ended)][0] + output
                placed, trail = book.begin({"sampling_params": {}}, ids, None, now_s)
                tokens, engines = plain.longest(ids)
                assert placed.held_tokens == tokens
                assert placed.held_on in engines or not engines
                assert 0 < placed.shared_tokens <= len(ids)
                # A group is of one epoch, and of one prompt with which all of it begins.
                prompt = tuple(ids[: placed.shared_tokens])
                assert groups.setdefault(placed.group_id, (epoch, prompt)) == (epoch, prompt)
                book.end(trail, output, placed.group_id, ENGINES[which])
                held = ids + output
                plain.ended = [pair for pair in plain.ended if pair[0] != held]
                plain.ended.append((held, ENGINES[which]))


@settings(max_examples=8, deadline=None)
@given(
    size=st.sampled_from([None, 1, 2]),
    window_s=st.sampled_from([0.0, 60.0]),
    names=st.lists(st.sampled_from([None, "g", "h"]), min_size=4, max_size=4),
)
def test_groups_never_change_a_result(
    size: int | None, window_s: float, names: list[str | None]
) -> None:
    async def scenario() -> None:
        ids = [[5, 6], [5, 6], [5, 6, 7], [9] * 40]
        async with cluster(
            server("a"), server("b"), group_size=size, group_window_s=window_s, chunk_tokens=9
        ) as it:
            for _ in range(2):
                calls = [
                    it.generate(prompt, group_id=name) for prompt, name in zip(ids, names, strict=True)
                ]
                answers = await asyncio.gather(*calls)
                told = [answer["output_ids"] for answer in answers]
                assert told == [continuation(prompt, 128) for prompt in ids]
            partial = it.generate([5, 6, *continuation([5, 6], 9)])
            assert (await partial)["output_ids"] == continuation([5, 6, *continuation([5, 6], 9)], 128)

    run(scenario())
