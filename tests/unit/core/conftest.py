"""Cores for table tests. Each is checked once more when its test is over."""

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from seer_sgl.router.core import Policy, RouterCore, policy_named
from seer_sgl.router.core.events import EngineJoined
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.types import EngineSpec

pytest.register_assert_rewrite("tests.unit.core.table")

PLAIN = {"chunk_tokens": 50, "chunk_plan": "constant", "settle_s": 0.0}


class MakeCore(Protocol):
    def __call__(self, policy: str | Policy, *engines: EngineSpec, **settings: Any) -> RouterCore: ...


@pytest.fixture
def make_core() -> Iterator[MakeCore]:
    """Build a core: policy or its name, engines that have joined, `CoreSettings` by name.

    Unless told otherwise all chunks are 50 tokens long and KV settles at once.
    """
    cores: list[RouterCore] = []

    def make(policy: str | Policy, *engines: EngineSpec, **settings: Any) -> RouterCore:
        chosen = policy_named(policy) if isinstance(policy, str) else policy
        core = RouterCore(chosen, CoreSettings(**{**PLAIN, **settings}))
        cores.append(core)
        for spec in engines:
            assert core.handle(EngineJoined(spec), 0.0) == []
        return core

    yield make
    for core in cores:
        core.check()
