"""Running measures of what it takes to compute KV again, to load it, and until it is in the pool.

Each is a straight line over tokens, fitted to the last samples as they come. Times in seconds, lengths
in tokens.
"""

from math import isfinite

from seer_sgl.router.core.events import ChunkTiming

MEMORY = 32
"""Samples after which an older one counts for about a third."""
WARM = 4
"""Samples before one may be called an outlier."""
DAMPING = 4.0
"""A sample is taken for at most so many times what was expected, and for at least this part of it."""
LEAST_S = 0.001
"""No expectation is taken for shorter than this when an outlier is told."""
LIKE = 0.1
"""Below this ratio of their spread to their mean, samples are too much alike to tell a slope."""
ANSWER_S = 0.05
"""How long the answer to a look-up may be under way, with the pauses between looks."""
DEVIATIONS = 4.0
"""`latest` is so many mean deviations above the mean, as RFC 6298 has it for retransmissions."""
SHARE_STEP = 0.25
LEAST_SHARE = 0.02
TRIAL_AFTER = 64
"""Moves in a row that did not wait before one does nevertheless: only that shows what it takes now."""


class Line:
    """Seconds as `base + tokens * slope`, least squares over samples whose weight decays.

    Weighted means and moments are updated sample by sample (West 1979, with a constant share for the
    newest once there are `MEMORY` of them). Neither base nor slope is ever negative; samples that are
    too much alike give a slope through the origin.
    """

    def __init__(self) -> None:
        self.count = 0
        self.deviation_s = 0.0
        """Mean distance of a sample from what was expected of it."""
        self._tokens = self._seconds = 0.0
        self._variance = self._covariance = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Learn from one sample. One that cannot be is passed over: no tokens, or no time."""
        if tokens <= 0 or not isfinite(seconds) or seconds < 0:
            return
        if self.count:
            expected_s = self.at(tokens)
            if self.count >= WARM:
                most_s = DAMPING * max(expected_s, LEAST_S)
                seconds = min(max(seconds, expected_s / DAMPING), most_s)
        else:
            expected_s = seconds
        self.count += 1
        share = max(1 / self.count, 1 / MEMORY)
        self.deviation_s += share * (abs(seconds - expected_s) - self.deviation_s)
        off_tokens, off_s = tokens - self._tokens, seconds - self._seconds
        self._tokens += share * off_tokens
        self._seconds += share * off_s
        self._variance = (1 - share) * (self._variance + share * off_tokens * off_tokens)
        self._covariance = (1 - share) * (self._covariance + share * off_tokens * off_s)

    def at(self, tokens: float) -> float:
        """Expected seconds for so many tokens; 0 while nothing is known."""
        if not self.count:
            return 0.0
        if self._variance <= (LIKE * self._tokens) ** 2:
            return self._seconds / self._tokens * tokens
        slope = self._covariance / self._variance
        if slope < 0:
            return self._seconds
        base_s = self._seconds - slope * self._tokens
        if base_s < 0:
            return self._seconds / self._tokens * tokens
        return base_s + slope * tokens


class Costs:
    """Of computing, loading and writing KV, and how often what was waited for came."""

    def __init__(self) -> None:
        self.compute = Line()
        """A prefill over the tokens that it computes."""
        self.load = Line()
        """From the pool to an engine, over the tokens loaded."""
        self.write = Line()
        """From a chunk's end until its KV is in the pool, over what was not known to be there before."""
        self.found_share = 1.0
        """Of late, the share of look-ups that found all they asked for in time."""
        self._skipped = 0

    def took(self, timing: ChunkTiming) -> None:
        """Learn from what an engine tells of a chunk."""
        self.compute.add(timing.computed_tokens, timing.prefill_s)
        self.load.add(timing.loaded_tokens, timing.load_s)

    def written(self, tokens: int, waited_s: float, at_once: bool = False) -> None:
        """So many tokens were found in the pool so long after their chunk's end.

        Args:
            at_once: they were there when somebody asked, which tells only that it took no longer. Else
                those who ask late would make writing look long, and be made to ask later still.
        """
        self._answered(1.0)
        if at_once and self.write.count:
            waited_s = min(waited_s, self.write.at(tokens))
        self.write.add(tokens, waited_s)

    def missed(self, tokens: int, waited_s: float) -> None:
        """They were not there after so long: writing takes longer, or failed. As nobody knows how much
        longer, this alone is no measure of it."""
        self._answered(0.0)
        if self.write.count:
            self.write.add(tokens, max(waited_s, self.write.at(tokens)))

    def latest_s(self, tokens: int) -> float:
        """After so long a chunk's KV should be in the pool, and the answer here."""
        return self.write.at(tokens) + max(ANSWER_S, DEVIATIONS * self.write.deviation_s)

    def wait_pays(self, wait_s: float, patience_s: float, saved_s: float) -> bool:
        """Whether waiting for KV costs less than it saves.

        One that ends well takes `wait_s` and saves `saved_s`; another takes `patience_s` and saves
        nothing. Where a share f ends well, it pays if f * wait_s + (1 - f) * patience_s < f * saved_s.
        """
        share = max(self.found_share, LEAST_SHARE)
        return wait_s + (1 - share) / share * patience_s < saved_s

    def skip(self) -> bool:
        """Count a move that is not to wait. True for one that waits nevertheless."""
        self._skipped = (self._skipped + 1) % TRIAL_AFTER
        return not self._skipped

    def _answered(self, found: float) -> None:
        self._skipped = 0
        self.found_share += SHARE_STEP * (found - self.found_share)
