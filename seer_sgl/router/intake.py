"""Samples from their arrival until the core may know of them: ids, groups, checks.

A call whose `rid` is on its way already is attached to what runs. Text is tokenized by an engine, in a
task of its own, as the call that began it may be given up while another one waits for the same sample.
"""

import asyncio
import itertools
import time
from collections.abc import Callable

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.calls import EngineCalls
from seer_sgl.router.core.events import Submitted
from seer_sgl.router.grouping import GroupBook
from seer_sgl.router.live import Call, Live, Registry
from seer_sgl.router.requests import Limits, Sample, check_against_engines, limits_of
from seer_sgl.router.roster import Roster
from seer_sgl.router.transcript import Transcript
from seer_sgl.types import EngineSpec, GroupId, RequestId

Submit = Callable[[list[tuple[Live, Submitted]]], None]


class Intake:
    """The way in.

    Args:
        submit: takes samples that can run.
    """

    def __init__(self, roster: Roster, calls: EngineCalls, groups: GroupBook, submit: Submit) -> None:
        self.registry = Registry()
        self._roster, self._calls, self._groups = roster, calls, groups
        self._submit = submit
        self._numbers = itertools.count()
        self._unready: list[list[Live]] = []
        """Calls that wait for an engine, or for the end of a hold."""
        self.held = False
        self._limits: tuple[list[EngineSpec], Limits] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- calls ----

    def open(self, samples: list[Sample], streams: bool) -> Call:
        """Let a call wait for its samples.

        Raises:
            RequestError: 409 where an id is on its way with another body; or a sample can never run,
                and nothing has to be waited for to know that. Then none of the call's samples does.
        """
        lives, fresh = [], []
        for sample in samples:
            live = self.registry.running(sample.rid)
            if live is not None and not _same(live.sample, sample):
                raise RequestError("rid", f"{sample.rid!r} is already running", status=409)
        for sample in samples:
            live = self.registry.running(sample.rid)
            if live is None:
                live = self._new(sample)
                fresh.append(live)
            live.streams = live.streams or streams
            lives.append(live)
        call = Call(lives)
        if fresh:
            self._prepare(fresh)
            try:
                call.check()
            except SeerError:
                self.close(call)
                raise
        return call

    def close(self, call: Call) -> list[Live]:
        """The call is over. Returns its samples that nobody waits for any more, though they run."""
        left = []
        for index, live in enumerate(call.lives):
            live.calls.remove((call, index))
            if live.calls:
                continue
            self.registry.remove(live)
            if live.state == "new":
                live.state = "done"
            elif live.state == "submitted":
                left.append(live)
        return left

    def _new(self, sample: Sample) -> Live:
        number = next(self._numbers)
        routed_from = sample.body.get("routed_experts_start_len")
        transcript = Transcript(
            sample.rid,
            sample.prompt_ids,
            routed_from if type(routed_from) is int else 0,
            bool(sample.sampling.get("no_stop_trim")),
        )
        live = Live(sample, RequestId(f"{sample.rid}#{number}"), number % 2**31, transcript)
        self.registry.add(live)
        return live

    # ---- on their way in ----

    def hold(self) -> None:
        """Let nothing go on from here until `release`."""
        self.held = True

    def release(self) -> None:
        self.held = False
        self._go_on()

    def engine_joined(self) -> None:
        """Let those go on that waited for one."""
        self._go_on()

    def _go_on(self) -> None:
        unready, self._unready = self._unready, []
        for lives in unready:
            self._prepare(lives)

    def stop(self) -> None:
        """Nothing will be tokenized any more."""
        for task in self._tasks:
            task.cancel()

    def _prepare(self, lives: list[Live]) -> None:
        if self.held or not len(self._roster):
            self._unready.append(lives)
        elif any(not live.transcript.prompt_ids for live in lives):
            task = asyncio.create_task(self._tokenize(lives), name="tokenize")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._check_and_submit(lives)

    async def _tokenize(self, lives: list[Live]) -> None:
        texts = {live.sample.text: list[int]() for live in lives if live.sample.text is not None}
        try:
            body = await self._calls.call("/tokenize", {"prompt": list(texts)})
        except SeerError as error:
            _fail(lives, error)
            return
        texts = dict(zip(texts, body["tokens"], strict=True))
        for live in lives:
            sample = live.sample
            if sample.text is None:
                continue
            sample.prompt_ids = live.transcript.prompt_ids = texts[sample.text]
            if not sample.prompt_ids:
                message = f"has no token in this vocabulary: {sample.text[:80]!r}"
                _fail(lives, RequestError("text", message))
                return
        self._prepare(lives)

    def _check_and_submit(self, lives: list[Live]) -> None:
        limits = self._limits_now()
        waiting = [live for live in lives if live.state == "new"]
        budgets: dict[tuple[int, int | None], int] = {}
        try:
            for live in waiting:
                # Samples of one prompt share its list: that is looked through once.
                alike = id(live.sample.prompt_ids), live.sample.max_new_tokens
                if alike not in budgets:
                    budgets[alike] = check_against_engines(live.sample, limits)
                live.budget_tokens = budgets[alike]
        except RequestError as error:
            _fail(waiting, error)
            return
        if waiting:
            self._submit(self._placed(waiting))

    def _limits_now(self) -> Limits:
        """Worked out where the engines have changed: with a thousand of them it takes a while."""
        engines = self._roster.specs()
        if self._limits is None or engines != self._limits[0]:
            self._limits = engines, limits_of(engines)
        return self._limits[1]

    def _placed(self, lives: list[Live]) -> list[tuple[Live, Submitted]]:
        """Samples with their groups; those with one body and prompt are together, whatever the rest."""
        alike: dict[tuple[int, int], list[Live]] = {}
        for live in lives:
            alike.setdefault((id(live.sample.body), id(live.sample.prompt_ids)), []).append(live)
        placed: list[tuple[Live, Submitted]] = []
        now_s = time.monotonic()
        for together in alike.values():
            sample = together[0].sample
            place, trail = self._groups.begin(
                sample.body, sample.prompt_ids, sample.group_id, now_s, len(together)
            )
            for live in together:
                live.group_id, live.trail, live.state = place.group_id, trail, "submitted"
                name = f"background/{place.group_id}" if sample.background else place.group_id
                event = Submitted(
                    request_id=live.request_id,
                    group_id=GroupId(name),
                    background=sample.background,
                    prompt_tokens=len(sample.prompt_ids),
                    max_new_tokens=live.budget_tokens,
                    divisible=sample.divisible,
                    prompt_key=place.prompt_key,
                    shared_tokens=min(place.shared_tokens, len(sample.prompt_ids)),
                    held_tokens=place.held_tokens,
                    held_in_pool=place.in_pool,
                    held_on=place.held_on,
                )
                placed.append((live, event))
        return placed


def _same(one: Sample, other: Sample) -> bool:
    """Whether two samples ask for the same."""
    prompts = (one.text, other.text) if one.text is not None else (one.prompt_ids, other.prompt_ids)
    same_prompt = prompts[0] == prompts[1] and (one.text is None) == (other.text is None)
    return same_prompt and one.max_new_tokens == other.max_new_tokens and one.body == other.body


def _fail(lives: list[Live], error: SeerError) -> None:
    for live in lives:
        live.end(None, error)
