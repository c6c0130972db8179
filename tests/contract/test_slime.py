"""slime's own functions against a router, from a checkout that `SEER_SGL_SLIME_CHECKOUT` names.

What slime imports beside and does not need here (ray, formula graders) is replaced by empty modules.
"""

import asyncio
import importlib
import os
import sys
import types
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from seer_sgl.smallmodel import WEIGHTS
from seer_sgl.testing.engine import continuation
from tests.contract.test_trainers import two_engines, url_of
from tests.unit.router.conftest import LONG, Cluster, cluster, prompts, run, until

CHECKOUT = os.environ.get("SEER_SGL_SLIME_CHECKOUT", "")
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="SEER_SGL_SLIME_CHECKOUT names no checkout of slime"),
    pytest.mark.filterwarnings("ignore"),
]
TOKENS = 120


class Nothing(types.ModuleType):
    """A module that has everything and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(f"{self.__name__}.{name}")

    def __call__(self, *given: Any, **_: Any) -> Any:
        return given[0] if given else self


def imported(name: str) -> Any:
    """A module of slime's, with stand-ins for what is not installed."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or name
            if missing.startswith("slime"):
                raise
            stand_in = Nothing(missing)
            stand_in.__path__ = []
            sys.modules[missing] = stand_in


@pytest.fixture(scope="module")
def slime() -> Iterator[Namespace]:
    sys.path.insert(0, CHECKOUT)
    yield Namespace(
        external=imported("slime.backends.sglang_utils.external"),
        engine=imported("slime.backends.sglang_utils.sglang_engine"),
        http=imported("slime.utils.http_utils"),
        rollout=imported("slime.rollout.sglang_rollout"),
        streaming=imported("slime.rollout.sglang_streaming_rollout"),
        types=imported("slime.utils.types"),
    )
    sys.path.remove(CHECKOUT)


def arguments(it: Cluster) -> Namespace:
    """slime's command line, as far as its rollout reads it."""
    return Namespace(
        **{f"rollout_{name}": None for name in ("stop", "stop_token_ids", "num_gpus")},
        hf_checkpoint=str(WEIGHTS),
        sglang_router_ip="127.0.0.1",
        sglang_router_port=it.config.http_port,
        sglang_server_concurrency=64,
        sglang_dp_size=1,
        rollout_num_engines=1,
        rollout_temperature=1.0,
        rollout_top_p=1.0,
        rollout_top_k=-1,
        rollout_max_response_len=TOKENS,
        rollout_skip_special_tokens=False,
        use_rollout_routing_replay=False,
        use_distributed_post=False,
        partial_rollout=True,
        ci_test=False,
        sglang_speculative_algorithm=None,
        use_opd=False,
    )


def engine_of(slime: Namespace, it: Cluster) -> Any:
    """slime's engine actor for a server that runs already: the router."""
    made = object.__new__(slime.engine.SGLangEngine)
    made.args = Namespace(rollout_external=True)
    made.node_rank, made.rank, made.worker_type = 0, 0, "regular"
    made.server_host, made.server_port = "127.0.0.1", it.config.http_port
    made.router_ip, made.router_port = made.server_host, made.server_port
    return made


async def use_client(slime: Namespace) -> None:
    """A client and a state of this event loop; both are global in slime."""
    slime.http._http_client = httpx.AsyncClient(timeout=None, trust_env=False)
    type(slime.rollout.GenerateState)._instances.clear()


def test_its_external_engine_is_found_and_registered(slime: Namespace) -> None:
    async def scenario() -> None:
        async with cluster(*two_engines()) as it:
            (info,) = await asyncio.to_thread(slime.external.discover_external_engines, [url_of(it)])
            assert (info.num_gpus, info.worker_type, info.url) == (4, "regular", url_of(it))
            engine = engine_of(slime, it)
            await asyncio.to_thread(engine._register_to_router, {})
            (worker,) = (await it.http.get("/workers")).json()["workers"]
            assert worker["url"] == engine.get_url()
            assert await asyncio.to_thread(engine.health_generate) is True

    run(scenario())


def test_its_engine_updates_weights(slime: Namespace) -> None:
    async def scenario() -> None:
        engines = two_engines()
        async with cluster(*engines) as it:
            engine = engine_of(slime, it)

            def update() -> str:
                engine.flush_cache()
                engine.init_weights_update_group("127.0.0.1", 29500, 1, 5, "g", "nccl")
                engine.pause_generation()
                engine.update_weights_from_distributed(["w"], ["bfloat16"], [[2]], "g", False, "7")
                engine.continue_generation()
                engine.destroy_weights_update_group("g")
                assert engine.get_weight_version() == "7"
                engine.release_memory_occupation()
                engine.resume_memory_occupation(["weights"])
                engine.resume_memory_occupation(["kv_cache", "cuda_graph"])
                engine.update_weights_from_disk("/models/8", weight_version="8")
                version: str = engine.get_weight_version()
                return version

            assert await asyncio.to_thread(update) == "8"
            for each in engines:
                paths = [call.path for call in each.calls]
                assert "/begin_weight_update" in paths[: paths.index("/update_weights_from_distributed")]

    run(scenario())


@pytest.mark.parametrize("kind", ["generate", "generate_streaming"])
def test_it_generates(slime: Namespace, kind: str) -> None:
    module = slime.rollout if kind == "generate" else slime.streaming

    async def scenario() -> None:
        (prompt,) = prompts(1, LONG)
        async with cluster(*two_engines(), chunk_tokens=32) as it:
            await use_client(slime)
            args = arguments(it)
            params = slime.rollout.GenerateState(args).sampling_params
            sample = slime.types.Sample(prompt="", tokens=list(prompt), index=0)
            done = await getattr(module, kind)(args, sample, dict(params))
            expected = continuation(prompt, TOKENS)
            assert done.tokens == prompt + expected
            assert done.response_length == len(expected)
            assert len(done.rollout_log_probs) == len(expected)
            assert done.status.value in ("completed", "truncated")
            await slime.http._http_client.aclose()

    run(scenario())


def test_its_abort_collects_partial_samples_and_they_go_on(slime: Namespace) -> None:
    async def scenario() -> None:
        async with cluster(*two_engines(token_s=0.005), chunk_tokens=32) as it:
            await use_client(slime)
            args = arguments(it)
            state = slime.rollout.GenerateState(args)
            samples = [slime.types.Sample(prompt="", tokens=ids, index=0) for ids in prompts(12, LONG)]

            async def alone(sample: Any) -> list[Any]:
                return [await slime.rollout.generate(args, sample, dict(state.sampling_params))]

            before = [list(sample.tokens) for sample in samples]
            state.pendings = {asyncio.create_task(alone(sample)) for sample in samples}
            await until(lambda: it.service.core.statistics().in_flight == 8)
            aborted = await slime.rollout.abort(args, rollout_id=3)
            assert len(aborted) == len(samples)
            assert {sample.status.value for sample in samples} == {"aborted"}
            assert any(sample.response_length for sample in samples)
            await asyncio.gather(*map(alone, samples))
            for sample, prompt in zip(samples, before, strict=True):
                assert sample.tokens == prompt + continuation(prompt, TOKENS)
            await slime.http._http_client.aclose()

    run(scenario())
