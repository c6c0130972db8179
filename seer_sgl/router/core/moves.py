"""What the pool holds of each request, and whether one that moves waits until its KV is there.

An engine writes a chunk's KV to the pool after the chunk has ended. A request that goes on elsewhere
before that computes the rest again. It waits only where that costs less, by what such things took of
late (see `costs.py`); until that is known, writing is taken to last `CoreSettings.settle_s`.
"""

from collections.abc import Iterable

from seer_sgl.router.core.actions import LookUp
from seer_sgl.router.core.costs import ANSWER_S, Costs
from seer_sgl.router.core.placement import PlacementSettings
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.router.core.state import Chunk, Engine, Group, Request


class Moves:
    """The only one to change what is known of requests' KV in the pool, but for a change of weights."""

    def __init__(self, settings: CoreSettings) -> None:
        self.costs = Costs()
        self.up: bool | None = None
        """Whether the pool works and look-ups are answered; None while nobody knows."""
        self.life = 0
        """Rises when a pool that was down works again: only chunks begun since are in it."""
        self._settle_s = settings.settle_s
        self._placement: PlacementSettings = settings.placement

    # ---- what is known ----

    def began(self, request: Request, held_in_pool: bool = True) -> None:
        """A new request.

        Args:
            held_in_pool: what it holds of an earlier one was written to the pool, and stays there.
        """
        request.in_pool = held_in_pool and self.up is not False

    def ended(self, chunk: Chunk, now_s: float) -> None:
        """A chunk of the present weights leaves KV. To be told before the buffer records the chunk."""
        request, group, engine = chunk.request, chunk.request.group, chunk.engine
        current = chunk.pool_life == self.life and self.up is not False
        first_here = engine not in group.prompt_on
        if not current:
            request.in_pool = False
        elif engine is not request.last_engine and (request.in_pool or engine is not request.begun_on):
            # It computed all that the pool lacked, and wrote it, but for what it had already: a prompt,
            # or what an earlier request left there.
            request.in_pool = request.in_pool or first_here or group.prompt_in_pool
            request.lacks = False
        if first_here:
            group.prompt_in_pool = current or (group.prompt_in_pool and bool(group.prompt_on))
        if not request.in_pool:
            request.settled_tokens = 0
        elif request.last_engine is not None and self._is_late(request, now_s):
            request.settled_tokens = request.held_tokens
        request.ended_s = now_s
        request.asked_tokens, request.found_tokens = 0, None

    def found(self, request: Request | None, tokens: int | None, now_s: float) -> bool:
        """Take an answer to a look-up into account. False where none is open.

        One that comes after its request went on tells what writing takes all the same.
        """
        if request is None:
            return False
        engine = request.last_engine
        if not request.asked_tokens or request.found_tokens is not None or engine is None:
            return False
        if tokens is None:
            request.found_tokens = request.settled_tokens
            return True
        self.up = True if self.up is None else self.up
        fresh_tokens = request.held_tokens - request.settled_tokens
        page_tokens = engine.spec.page_tokens
        if tokens >= max(1, request.asked_tokens // page_tokens) * page_tokens:
            at_once = now_s < request.asked_s + ANSWER_S
            self.costs.written(fresh_tokens, now_s - request.ended_s, at_once)
            tokens = request.held_tokens
            request.lacks = False
        else:
            request.lacks = True
            if now_s > request.until_s - 2 * ANSWER_S:
                self.costs.missed(fresh_tokens, now_s - request.ended_s)
        request.found_tokens = request.settled_tokens = max(0, tokens)
        return True

    def state(self, up: bool | None, requests: Iterable[Request], groups: Iterable[Group]) -> None:
        """What is known of the pool has changed. O(n) where it lost what it held."""
        if up is False and self.up is not False:
            for request in requests:
                request.in_pool, request.found_tokens = False, None
                request.asked_tokens = request.settled_tokens = 0
            for group in groups:
                group.prompt_in_pool = False
        elif up is not False and self.up is False:
            self.life += 1
        self.up = up

    # ---- what follows ----

    def plan(self, request: Request, engine: Engine, now_s: float) -> tuple[int, float]:
        """How much of its prefix to pull from the pool if it goes to this engine, and until when it
        waits for that; a time that is not in the future is at once.

        A gap of at most `pull_margin_tokens` between what it needs and what is there is computed again.
        """
        have_tokens = request.prefix_on(engine)
        gap_tokens = self._worthwhile(request.pooled_tokens - have_tokens)
        if not gap_tokens or self._is_over(request, now_s):
            return gap_tokens, 0.0
        home = request.last_engine
        lost = home is None or home.status == "gone"
        if request.asked_tokens and now_s < request.until_s and not lost:
            return gap_tokens, request.until_s
        known_tokens = max(0, request.settled_tokens - have_tokens)
        at_once_tokens = self._worthwhile(known_tokens)
        if lost or request.asked_tokens or not self._worthwhile(gap_tokens - known_tokens):
            return at_once_tokens, 0.0
        patience_s = self._patience_s(request, engine, (gap_tokens, at_once_tokens), now_s)
        return (gap_tokens, now_s + patience_s) if patience_s > 0 else (at_once_tokens, 0.0)

    def ask(self, request: Request, until_s: float, now_s: float) -> list[LookUp]:
        """What to ask of the pool for a request that begins to wait; nothing where it was asked.

        SGLang keeps no KV of the last token: it is computed with the next one.
        """
        if request.asked_tokens:
            return []
        request.asked_tokens, request.asked_s = request.held_tokens - 1, now_s
        request.until_s = until_s + ANSWER_S if self.up else until_s
        return [LookUp(request.request_id, request.asked_tokens, until_s - now_s)]

    def _worthwhile(self, tokens: int) -> int:
        """The tokens, or 0 where they are too few to be pulled, or there is nowhere to pull from."""
        few = tokens <= self._placement.pull_margin_tokens
        return 0 if few or self.up is False else tokens

    def _is_over(self, request: Request, now_s: float) -> bool:
        """Whether all that is said to be in the pool is there by now, or the best that can be said.

        Where look-ups are answered, one without an answer found nothing. What an engine took along when
        it left never comes, but where nobody can look that is not known.
        """
        home = request.last_engine
        if home is None or (home.status == "gone" and not self.up):
            return True
        if request.found_tokens is not None or not request.in_pool:
            return True
        return not (request.asked_tokens and self.up) and self._is_late(request, now_s)

    def _is_late(self, request: Request, now_s: float) -> bool:
        """Whether what its last chunk left should be in the pool by now."""
        if request.lacks:
            return False
        fresh_tokens = request.held_tokens - request.settled_tokens
        return now_s >= request.ended_s + self._write_s(fresh_tokens)[1]

    def _patience_s(
        self, request: Request, engine: Engine, tokens: tuple[int, int], now_s: float
    ) -> float:
        """How long it is to wait until all of a gap is in the pool; 0 for not at all.

        Args:
            tokens: the gap, and how much of it could be pulled at once; the rest would be computed.

        A wait costs one request its time. Computing costs as much to all that run on the engine, as they
        stand still meanwhile. Nobody waits for longer than the other way would cost: so a wait in vain
        costs no more than that once again. The first ones wait to try it out.
        """
        costs, since_s = self.costs, now_s - request.ended_s
        expected_s, latest_s = self._write_s(request.held_tokens - request.settled_tokens)
        untried = self.up and not costs.write.count and costs.found_share == 1.0
        if untried or not costs.compute.count:
            return latest_s - since_s
        gap_tokens, at_once_tokens = tokens
        alone_s = costs.compute.at(gap_tokens - at_once_tokens)
        saved_s = alone_s * (1 + len(engine.chunks)) - costs.load.at(gap_tokens)
        if at_once_tokens:
            saved_s += costs.load.at(at_once_tokens)
        patience_s = min(latest_s - since_s, saved_s)
        if costs.wait_pays(max(0.0, expected_s - since_s), patience_s, saved_s):
            return patience_s
        tries = self.up and saved_s > 0 and costs.skip()
        return min(saved_s, max(latest_s, alone_s)) if tries else 0.0

    def _write_s(self, tokens: int) -> tuple[float, float]:
        """After how long so many tokens should be in the pool, and when they are at the latest."""
        if not self.up or not self.costs.write.count:
            return self._settle_s, self._settle_s
        return self.costs.write.at(tokens), self.costs.latest_s(tokens)
