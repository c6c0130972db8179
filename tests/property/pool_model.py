"""What is known of the pool, and what may be expected of it: the model beside `moves.py`.

The measures are the core's own class, fed with the same samples: this is about what follows from them.
"""

from collections.abc import Iterable

from seer_sgl.router.core.costs import ANSWER_S, Costs
from seer_sgl.router.core.settings import CoreSettings
from tests.property.cluster import Machine, Sample


class PoolModel:
    """Keeps what each sample has in the pool."""

    def __init__(self, options: CoreSettings) -> None:
        self.options = options
        self.costs = Costs()
        self.up: bool | None = None
        self.life = 0

    # ---- what happens ----

    def chunk_ended(self, sample: Sample, machine: Machine, now_s: float) -> None:
        """Before its tokens are counted: what was there when it began is in the pool, if it had time."""
        prompt = sample.prompt
        kept = sample.pool_life == self.life and self.up is not False
        late = now_s >= sample.ended_s + self.latest_s(sample)
        whole = machine not in prompt.on or prompt.in_pool
        if not kept:
            sample.in_pool = False
        elif machine is not sample.last_on and (sample.in_pool or machine is not sample.begun_on):
            sample.in_pool = sample.in_pool or whole
            sample.lacks = False
        if machine not in prompt.on:
            prompt.in_pool = kept or (prompt.in_pool and len(prompt.on) > 0)
        if not sample.in_pool:
            sample.settled_tokens = 0
        elif sample.last_on is not None and late and not sample.lacks:
            sample.settled_tokens = sample.held_tokens
        sample.ended_s = now_s
        sample.asked_tokens, sample.found_tokens = 0, None

    def found(self, sample: Sample | None, tokens: int | None, now_s: float) -> None:
        if sample is None or not self.awaits_answer(sample):
            return
        if tokens is None:
            sample.found_tokens = sample.settled_tokens
            return
        self.up = True if self.up is None else self.up
        assert sample.last_on is not None
        fresh = sample.held_tokens - sample.settled_tokens
        page = sample.last_on.spec.page_tokens
        sample.lacks = tokens // page < max(1, sample.asked_tokens // page)
        if not sample.lacks:
            at_once = now_s < sample.asked_s + ANSWER_S
            self.costs.written(fresh, now_s - sample.ended_s, at_once)
            tokens = sample.held_tokens
        elif now_s > sample.until_s - 2 * ANSWER_S:
            self.costs.missed(fresh, now_s - sample.ended_s)
        sample.found_tokens = sample.settled_tokens = tokens

    def state(self, up: bool | None, samples: Iterable[Sample]) -> None:
        if (up is False) != (self.up is False):
            self.life += 1
        if up is False and self.up is not False:
            for sample in samples:
                sample.in_pool = sample.prompt.in_pool = False
                sample.asked_tokens = sample.settled_tokens = 0
                sample.found_tokens = None
        self.up = up

    def epoch(self, samples: Iterable[Sample]) -> None:
        """No KV of before is of use to anybody."""
        for sample in samples:
            sample.last_on = sample.begun_on = sample.found_tokens = None
            sample.begun_tokens = sample.settled_tokens = sample.asked_tokens = 0
            sample.in_pool = sample.prompt.in_pool = True
            sample.lacks = False
            sample.prompt.on.clear()
            sample.of_old = sample.running is not None

    # ---- what follows ----

    def awaits_answer(self, sample: Sample) -> bool:
        return sample.asked_tokens > 0 and sample.found_tokens is None

    def gap(self, sample: Sample, machine: Machine) -> int:
        """What it may pull there at best: 0 where that is too little."""
        return self._enough(self._pooled(sample) - sample.prefix_on(machine))

    def _enough(self, tokens: int) -> int:
        down = self.up is False
        return tokens if tokens > self.options.placement.pull_margin_tokens and not down else 0

    def _pooled(self, sample: Sample) -> int:
        if sample.last_on is not None and sample.found_tokens is not None:
            return sample.found_tokens
        if sample.last_on is not None and sample.in_pool:
            return sample.held_tokens
        begun = sample.begun_tokens if sample.in_pool else 0
        return max(begun, sample.shared_tokens if sample.prompt.on and sample.prompt.in_pool else 0)

    def latest_s(self, sample: Sample) -> float:
        if not self.up or not self.costs.write.count:
            return self.options.settle_s
        return self.costs.latest_s(sample.held_tokens - sample.settled_tokens)

    def is_over(self, sample: Sample, is_here: bool, now_s: float) -> bool:
        """Whether what is there is there, as nothing more is on its way. `is_here`: its last machine."""
        if sample.last_on is None or not sample.in_pool or sample.found_tokens is not None:
            return True
        if not is_here and not self.up:
            return True
        late = now_s >= sample.ended_s + self.latest_s(sample)
        return late and not (self.up and sample.asked_tokens) and not sample.lacks

    def may_wait(self, sample: Sample, is_here: bool, now_s: float) -> bool:
        if not is_here or self.is_over(sample, is_here, now_s):
            return False
        return now_s < sample.until_s if sample.asked_tokens else True

    def judge_pull(
        self, sample: Sample, machine: Machine, pulled: int, is_here: bool, now_s: float
    ) -> None:
        """Whether so much may be expected of the pool for a chunk that goes to a machine now."""
        gap = self.gap(sample, machine)
        known = max(0, sample.settled_tokens - sample.prefix_on(machine))
        if not gap or self.is_over(sample, is_here, now_s):
            assert pulled == gap
            return
        assert pulled == self._enough(known), "expects KV that may not be in the pool"
        if sample.asked_tokens:
            assert now_s >= sample.until_s or not is_here, "went though it had begun to wait"
        else:
            costs = self.costs
            tried = costs.write.count > 0 or costs.found_share < 1 or not self.up
            late = now_s >= sample.ended_s + self.latest_s(sample)
            knows = (tried and costs.compute.count > 0) or (late and sample.lacks) or not is_here
            assert knows or not self._enough(gap - known), "nobody knew that it would not pay"

    def judge_look_up(self, sample: Sample, tokens: int, patience_s: float, now_s: float) -> None:
        assert sample.last_on is not None
        assert sample.asked_tokens == 0, "asked twice"
        assert self.up is not False
        assert tokens == sample.held_tokens - 1
        left_s = sample.ended_s + self.latest_s(sample) - now_s
        longest_s = max(left_s, self.latest_s(sample), self.costs.compute.at(sample.held_tokens))
        assert 0 < patience_s <= longest_s + 1e-9
        sample.asked_tokens, sample.asked_s = tokens, now_s
        sample.until_s = now_s + patience_s + (ANSWER_S if self.up else 0.0)
