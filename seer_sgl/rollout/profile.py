"""Measures running SGLang servers, over the interface that the router's agents use.

All servers get the same load at the same time: engines on one machine disturb each other, and in a
rollout they all work. What is measured, and what follows from it, `seer_sgl.sim.fit` decides.
"""

import asyncio
import contextlib
import random
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from seer_sgl.engine.sglang import EngineInfo, SGLangClient, error_message
from seer_sgl.errors import ChildFailedError, EngineUnreachable, StartError
from seer_sgl.sim.fit import (
    LEAD_TOKENS,
    SHORT_PROMPT_TOKENS,
    WINDOW_STEPS,
    Fit,
    Limits,
    Load,
    Observation,
    Plan,
    fit,
    plan_for,
)
from seer_sgl.spec.filler import FORCED
from seer_sgl.types import EngineId

T = TypeVar("T")
Batch: TypeAlias = list[list[int]]
"""Token ids of prompts."""

SETTLE_S = 1.0
"""Within this time KV that an engine wrote is in the pool (twice the router's own patience)."""
WIDTHS = (2, 4, 8, 16, 32)
QUICK_WIDTHS = (2, 8, 32)
"""Rows of a request in steps with drafts."""
CHAIN_LINKS = 16
CHAIN_PROMPT_TOKENS = 192
"""A sample in the middle of its life, for small models; what a prefix costs is nothing on a GPU."""
FIRST_ID, LAST_ID = 10, 1000
"""Token ids of prompts; the last one where the server does not say how many there are. Every vocabulary
has them, and low ids tend to be special."""


class Profile(msgspec.Struct, frozen=True):
    """What the servers are, and how fast."""

    fit: Fit
    model: str
    sglang_version: str
    servers: int
    seconds: float
    """How long it took to measure."""
    notes: list[str]
    """What was not measured, and why."""


async def profile_servers(
    urls: Sequence[str],
    max_batch: int | None = None,
    quick: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Profile:
    """Measure idle servers of one model, and fit an engine to them.

    Args:
        urls: SGLang's own addresses; a router's is none. Their caches are flushed.
        max_batch: most requests at once; None: what the servers run.
        quick: fewer loads and repeats.
        say: told each step in a line.

    Raises:
        StartError: a server does not answer, is busy, or is of another kind than the first.
        ChildFailedError: a server failed meanwhile.
        SeerError: what was measured determines no model.
    """
    began_s = _now_s()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(_client(url)) for url in urls]
        infos = await asyncio.gather(*map(_ask, clients))
        _check_alike(clients, infos)
        limits = _limits(infos)
        context_tokens = min(info.spec.context_tokens for info in infos)
        vocabulary = min(info.spec.vocab_size or LAST_ID for info in infos)
        bench = _Bench(clients, vocabulary, say, drafts=all(map(_drafts, infos)))
        widths = await bench.widths(QUICK_WIDTHS if quick else WIDTHS)
        plan = plan_for(limits, context_tokens, max_batch, quick, widths)
        observations, notes = await bench.measure(plan)
    return Profile(
        fit=fit(observations, limits),
        model=infos[0].model.rstrip("/").rpartition("/")[2],
        sglang_version=infos[0].sglang_version,
        servers=len(clients),
        seconds=_now_s() - began_s,
        notes=notes,
    )


@contextlib.asynccontextmanager
async def _client(url: str) -> AsyncIterator[SGLangClient]:
    client = SGLangClient(url)
    try:
        yield client
    finally:
        await client.close()


async def _ask(client: SGLangClient) -> EngineInfo:
    try:
        info = await client.info(EngineId(client.url))
        running, waiting, _ = await client.load()
    except (EngineUnreachable, ValueError, LookupError) as error:
        raise StartError(
            f"no SGLang server answers at {client.url} ({type(error).__name__}: {_line(error)}); "
            "start one, or name its own address, not a router's"
        ) from None
    if running or waiting:
        raise StartError(
            f"the server at {client.url} runs {running + waiting} requests; profile it while it is idle"
        )
    return info


def _drafts(info: EngineInfo) -> bool:
    """Whether its speculation is ours, and does as it is told."""
    return bool((info.plugin or {}).get("speculation"))


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_alike(clients: list[SGLangClient], infos: list[EngineInfo]) -> None:
    def kind(info: EngineInfo) -> tuple[str, str, int]:
        return info.model, info.sglang_version, info.spec.page_tokens

    for client, info in zip(clients, infos, strict=True):
        if kind(info) != kind(infos[0]):
            raise StartError(
                "the servers differ in model, SGLang version or page size: "
                f"{clients[0].url} has {kind(infos[0])}, {client.url} {kind(info)}; profile them apart"
            )


def _limits(infos: list[EngineInfo]) -> Limits:
    """What every one of them holds."""
    specs = [info.spec for info in infos]
    return Limits(
        kv_capacity_tokens=min(spec.kv_capacity_tokens for spec in specs),
        page_tokens=specs[0].page_tokens,
        max_running_requests=min(spec.max_running_requests for spec in specs),
    )


class _Bench:
    """Servers under test."""

    def __init__(
        self, clients: list[SGLangClient], vocabulary: int, say: Callable[[str], None], drafts: bool
    ) -> None:
        self._clients = clients
        self._drafts = drafts
        """Each request says how much is to be drafted for it."""
        self._last_id = max(FIRST_ID + 1, min(vocabulary, LAST_ID) - 1)
        # No seed: prompts of an earlier profile may still be in the servers' caches and in their pool.
        self._random = random.Random()
        self._say = say

    async def measure(self, plan: Plan) -> tuple[list[Observation], list[str]]:
        """All of the plan, in rounds: a moment's disturbance is in one sample of each median, not in
        all samples of one. And notes on what could not be measured."""
        await self._all(self._post(client, "/flush_cache?timeout=10", {}) for client in self._clients)
        self._say("warming up")
        await self._warm_up(plan)
        batches = {load: self._batches(load.requests, load.prompt_tokens) for load in plan.loads}
        samples = _Samples()
        for number in range(plan.rounds):
            self._say(f"round {number + 1} of {plan.rounds}")
            for load, prompts in batches.items():
                await self._step(load, prompts, samples)
            for tokens in plan.prefill_tokens:
                samples.prefills[tokens] += await self._timed(self._batches(1, tokens), 1)
            for links_s in await self._all(map(self._chain, self._clients)):
                samples.turnarounds += links_s
            for tokens in plan.start_tokens:
                await self._starts(plan.beside_requests, tokens, samples)
            if len(self._clients) > 1:
                await self._move(plan.move_tokens, samples)
        if len(self._clients) == 1:
            return samples.observations(), ["moves were not measured: that takes two servers"]
        notes = [] if samples.moves else ["moves were not measured: the servers share no KV pool"]
        return samples.observations(), notes

    async def widths(self, wanted: Sequence[int]) -> list[int]:
        """Which of these widths every server runs when it is asked to; none where none drafts."""
        found = []
        for width in wanted if self._drafts else ():
            before = await self._counts()
            await self._timed(self._batches(1, SHORT_PROMPT_TOKENS), WINDOW_STEPS, width)
            after = await self._counts()
            steps, rows, accepted = (
                after[key] - before[key] for key in ("requests", "rows", "accepted")
            )
            # A tenth of the drafts accepted would make ten measured steps nine.
            if rows == width * steps and accepted <= 1.1 * steps:
                found.append(width)
        return found

    async def _counts(self) -> dict[str, float]:
        """What the servers' speculation has counted, in sum."""
        infos = await self._all(map(_ask, self._clients))
        counts = [(info.plugin or {})["speculation"] for info in infos]
        return {key: sum(count[key] for count in counts) for key in ("requests", "rows", "accepted")}

    async def _warm_up(self, plan: Plan) -> None:
        """The first requests compile and allocate."""
        most = max(load.requests for load in plan.loads)
        for count in (1, most):
            answers = await self._all(
                self._generate(client, prompts, LEAD_TOKENS)
                for client, prompts in zip(self._clients, self._batches(count, 32), strict=True)
            )
        for client, answer in zip(self._clients, answers, strict=True):
            if "spec_verify_ct" in answer[0]["meta_info"] and not self._drafts:
                raise StartError(
                    f"the server at {client.url} decodes speculatively: start it without, as the time "
                    "of a plain step is what is measured"
                )

    async def _step(self, load: Load, batches: list[Batch], samples: "_Samples") -> None:
        """Two runs of one batch that differ in length alone; its prompts are cached by then."""
        await self._timed(batches, 1)
        samples.leads[load] += await self._timed(batches, LEAD_TOKENS, load.width)
        samples.windows[load] += await self._timed(batches, LEAD_TOKENS + WINDOW_STEPS, load.width)

    async def _chain(self, client: SGLangClient) -> list[float]:
        """Seconds of each chunk of one token that goes on where the one before ended."""
        [ids], seconds = self._batch(1, CHAIN_PROMPT_TOKENS), []
        for _ in range(CHAIN_LINKS + 1):
            began_s = _now_s()
            [answer] = await self._generate(client, [ids], 1)
            seconds.append(_now_s() - began_s)
            ids = ids + answer["output_ids"]
        return seconds[1:]

    async def _starts(self, requests: int, tokens: int, samples: "_Samples") -> None:
        """How much later a batch ends for each chunk that starts beside it, from a cached prefix."""
        batches, prefixes = self._batches(requests, SHORT_PROMPT_TOKENS), self._batches(1, tokens)
        await self._timed(batches, 1)
        await self._timed(prefixes, 1)
        alone = await self._timed(batches, WINDOW_STEPS)
        beside = await self._all(map(self._beside, self._clients, batches, prefixes))
        for alone_s, (beside_s, starts) in zip(alone, beside, strict=True):
            samples.starts[tokens].append((beside_s - alone_s) / starts)

    async def _beside(self, client: SGLangClient, batch: Batch, prefix: Batch) -> tuple[float, int]:
        """Seconds of a batch, and how many chunks of one token, one after the other, end meanwhile."""
        starts, [ids] = 0, prefix
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self._timed_one(client, batch, WINDOW_STEPS))
            while not running.done():
                [answer] = await self._generate(client, [ids], 1)
                ids = ids + answer["output_ids"]
                starts += 1
        return running.result(), max(1, starts - 1)

    async def _move(self, lengths: list[int], samples: "_Samples") -> None:
        """Prefixes that the next server has are asked for here, and again when they are here."""
        prompts = {tokens: self._batches(1, tokens) for tokens in lengths}
        for batches in prompts.values():
            await self._timed(batches, 1)
        await asyncio.sleep(SETTLE_S)
        for tokens, batches in prompts.items():
            turned = [*batches[1:], batches[0]]
            first = await self._all(map(self._asked, self._clients, turned))
            again = await self._all(map(self._asked, self._clients, turned))
            for (first_s, pool_tokens), (again_s, _) in zip(first, again, strict=True):
                if pool_tokens:
                    samples.moves[tokens].append((pool_tokens, first_s - again_s))

    async def _asked(self, client: SGLangClient, prompts: Batch) -> tuple[float, int]:
        """Seconds of one new token, and how many of the prompt came from the pool."""
        began_s = _now_s()
        [answer] = await self._generate(client, prompts, 1)
        seconds = _now_s() - began_s
        details = answer["meta_info"].get("cached_tokens_details") or {}
        return seconds, details.get("storage", 0)

    async def _timed(self, batches: list[Batch], new_tokens: int, width: int = 1) -> list[float]:
        """Seconds of one batch on each server, all at once."""
        one = partial(self._timed_one, new_tokens=new_tokens, width=width)
        return await self._all(map(one, self._clients, batches))

    async def _timed_one(
        self, client: SGLangClient, prompts: Batch, new_tokens: int, width: int = 1
    ) -> float:
        began_s = _now_s()
        await self._generate(client, prompts, new_tokens, width)
        return _now_s() - began_s

    async def _generate(
        self, client: SGLangClient, prompts: Batch, new_tokens: int, width: int = 1
    ) -> list[dict[str, Any]]:
        """Answers to a batch, sent as one call so that its requests start together."""
        sampling: dict[str, Any] = {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        if self._drafts:
            sampling["custom_params"] = {"seer": {FORCED: width - 1}}
        answers = await self._post(
            client, "/generate", {"input_ids": prompts, "sampling_params": sampling}
        )
        batch: list[dict[str, Any]] = answers if isinstance(answers, list) else [answers]
        if any(len(answer["output_ids"]) != new_tokens for answer in batch):
            raise ChildFailedError(f"the SGLang server at {client.url} cut an answer short", "")
        return batch

    async def _post(self, client: SGLangClient, path: str, body: dict[str, Any]) -> Any:
        try:
            status, answer = await client.post(path, body)
        except EngineUnreachable as error:
            what = f"the SGLang server at {client.url} stopped answering: {_line(error)}"
            raise ChildFailedError(what, "") from None
        if status != 200:
            what = f"the SGLang server at {client.url} refused {path}: {error_message(answer)}"
            raise ChildFailedError(what, "")
        return answer

    async def _all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Their results, all at once; the first failure ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(coroutine) for coroutine in work]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    def _batches(self, requests: int, tokens: int) -> list[Batch]:
        """Fresh prompts for each server."""
        return [self._batch(requests, tokens) for _ in self._clients]

    def _batch(self, requests: int, tokens: int) -> Batch:
        ids = range(FIRST_ID, self._last_id + 1)
        return [self._random.choices(ids, k=tokens) for _ in range(requests)]


class _Samples:
    """Seconds, of all servers and rounds."""

    def __init__(self) -> None:
        self.starts: defaultdict[int, list[float]] = defaultdict(list)
        self.leads: defaultdict[Load, list[float]] = defaultdict(list)
        self.windows: defaultdict[Load, list[float]] = defaultdict(list)
        self.prefills: defaultdict[int, list[float]] = defaultdict(list)
        self.turnarounds: list[float] = []
        self.moves: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        """Per length, tokens from the pool and seconds."""

    def observations(self) -> list[Observation]:
        """The medians."""
        found = []
        for load, window_s in self.windows.items():
            decode_s = statistics.median(window_s) - statistics.median(self.leads[load])
            step = Observation("step", load.requests, load.kv_tokens, decode_s / WINDOW_STEPS)
            if load.width > 1:
                step = replace(step, kind="verify", rows=load.requests * load.width)
            found.append(step)
        for tokens, seconds in self.starts.items():
            found.append(Observation("start", 1, tokens, statistics.median(seconds)))
        for tokens, seconds in self.prefills.items():
            found.append(Observation("prefill", 1, tokens, statistics.median(seconds)))
        chain_tokens = CHAIN_PROMPT_TOKENS + CHAIN_LINKS / 2
        found.append(Observation("turnaround", 1, chain_tokens, statistics.median(self.turnarounds)))
        for moves in self.moves.values():
            moved_tokens, seconds_each = zip(*moves, strict=True)
            move_s = statistics.median(seconds_each)
            found.append(Observation("move", 1, statistics.median(moved_tokens), move_s))
        return found
