"""Engines whose servers have had updates before they register: at a router that has just started."""

import pytest

from seer_sgl.router.service import RouterService
from tests.unit.router.conftest import cluster, run, server, until
from tests.unit.router.control.weights.test_epochs import DISK_PATH, good
from tests.unit.router.control.weights.test_updates import DISK, FAILED, post, quarantine


@pytest.mark.parametrize("what", ["both fail", "one fails", "reset", "none"])
def test_doubt_outlasts_the_router(what: str) -> None:
    async def scenario() -> None:
        a, b = server("a"), server("b")
        async with cluster(a, b) as it:
            if what != "none":
                a.script[DISK_PATH] = FAILED
            if what == "both fail":
                b.script[DISK_PATH] = FAILED
            if what == "reset":
                a.script.clear()
            await post(it, DISK_PATH, DISK)
            if what == "reset":
                await good(post(it, "/weights_checker", {"action": "reset_tensors"}))
            before = await quarantine(it)
            await it.service.__aexit__()
            async with RouterService(it.config) as later:
                await until(lambda: len(later.roster.members) == 2)
                after = {str(name): member.quarantine for name, member in later.roster.members.items()}
                await it.stop_agents()
            assert {name for name, why in after.items() if why} == {
                n for n, why in before.items() if why
            }

    run(scenario())
