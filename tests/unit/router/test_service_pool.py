"""What the pool's keeper hears of groups: when the last sample is over, and not before."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from seer_sgl.router.core.events import Submitted
from seer_sgl.router.live import Live
from seer_sgl.router.pool import NoPool
from seer_sgl.types import RequestId
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, server, together, until


class Noted(NoPool):
    """Notes requests that begin and groups that end."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def opened(
        self,
        request: RequestId,
        group: str,
        extra_key: str | None,
        salt: str | None,
        ids: Sequence[int],
    ) -> None:
        self.told.append(("opened", group))

    def group_over(self, group: str) -> None:
        self.told.append(("over", group))


def noting(it: Cluster) -> Noted:
    noted = it.service.dispatcher._pooling.pool = Noted()
    return noted


class Freeing(Noted):
    releases = True


@pytest.mark.parametrize(("pool", "stays"), [(Noted, True), (Freeing, False)])
def test_what_is_freed_with_its_sample_is_not_expected_of_the_pool(
    pool: type[Noted], stays: bool
) -> None:
    async def scenario() -> None:
        async with cluster(server()) as it:
            dispatcher = it.service.dispatcher
            dispatcher._pooling.pool = pool()
            answer = await it.generate([5] * 40, sampling_params={"max_new_tokens": 40})
            seen: list[Submitted] = []
            submit = dispatcher._submit

            def noting(placed: list[tuple[Live, Submitted]]) -> None:
                seen.extend(event for _, event in placed)
                submit(placed)

            dispatcher._intake._submit = noting
            turn = [5] * 40 + answer["output_ids"]
            await it.generate([*turn, 7])
            assert seen[0].held_tokens == len(turn)
            assert seen[0].held_in_pool is stays

    run(scenario())


def test_a_group_is_over_with_its_last_sample() -> None:
    async def scenario() -> None:
        async with cluster(server(token_s=0.0005, max_running_requests=1)) as it:
            noted = noting(it)
            body: dict[str, Any] = {"input_ids": [5, 6], "sampling_params": {"n": 3}}
            await asyncio.gather(
                it.post({**body, "group_id": "one"}), it.post({**body, "group_id": "two"})
            )
            for name in ("one", "two"):
                said = [what for what, group in noted.told if group == name]
                assert said == ["opened"] * 3 + ["over"], "two of them waited while nothing of it ran"
            assert not it.service.dispatcher._pooling._members

    run(scenario())


def test_a_group_that_is_given_up_while_it_waits_is_over() -> None:
    async def scenario() -> None:
        first, second = prompts(2, LONG)
        async with cluster(server(token_s=0.005, max_running_requests=1)) as it:
            noted = noting(it)
            async with together(it.generate(first, group_id="one")) as call:
                await until(lambda: noted.told)
                async with together(it.generate(second, group_id="two")) as waiting:
                    await until(lambda: len(it.service.dispatcher._pooling._members) == 2)
                    it.service.dispatcher.abort_all()
                    await asyncio.gather(call, waiting)
            assert noted.told == [("opened", "one"), ("over", "one")], "of the other nothing was told"
            assert not it.service.dispatcher._pooling._members

    run(scenario())


def test_a_change_of_weights_ends_all_groups_and_those_that_go_on_begin_anew() -> None:
    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        engine = server(token_s=0.002)
        async with cluster(engine, chunk_tokens=50, chunk_plan="constant") as it:
            noted = noting(it)
            async with together(it.generate(prompt, group_id="one")) as call:
                await until(lambda: engine.bodies)
                it.service.dispatcher.new_epoch()
                await call
            assert noted.told == [("opened", "one"), ("opened", "one.e1"), ("over", "one.e1")]

    run(scenario())
