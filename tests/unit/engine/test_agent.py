"""When an agent gives its engine up, and when it does not."""

import pytest

from seer_sgl.engine import agent
from seer_sgl.engine.agent import MAX_QUICK_ENDS
from seer_sgl.engine.sglang import EngineInfo
from seer_sgl.errors import ChildFailedError
from seer_sgl.testing.engine import FakeServer
from tests.unit.router.conftest import cluster, run, server, until


class Stillborn(FakeServer):
    """One that does not come up."""

    async def start(self) -> EngineInfo:
        raise ChildFailedError("the fake server has no pool", "")


def test_a_server_that_never_comes_up_is_given_up() -> None:
    async def scenario() -> None:
        async with cluster() as it:
            with pytest.raises(ChildFailedError, match="has no pool"):
                await it.join(*(Stillborn() for _ in range(MAX_QUICK_ENDS)))

    run(scenario())


def test_one_that_has_served_is_tried_until_it_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(agent, "LONGEST_PAUSE_S", 0.01)
        first, last = server("a"), server("a")
        failing = [Stillborn() for _ in range(2 * MAX_QUICK_ENDS)]
        async with cluster() as it:
            task = await it.join(first, *failing, last)
            first.kill()
            await until(lambda: not it.service.roster.members)
            await until(lambda: it.service.roster.members)
            assert not task.done()
            await it.generate([5, 6])
            assert last.bodies

    run(scenario())
