"""What samples have shown about lengths so far (the Seer paper's Context Manager).

The model behind: the logarithm of an output's length is normal around its group's mean, and the groups'
means are normal around the mean of all. A finished sample shows its length; one that still runs shows
only that it is longer than what it has (it is *censored*), which tells the more, the longer it runs.
Both spreads are learned as the samples come in: how alike siblings are decides how far to trust them.

Each time that a group's sample moves on, its own mean is worked out anew (E-step), and the group's share
in the sums behind the common values is replaced (M-step). Other groups hear of it when the common values
have drifted: then `edition` changes, and whoever keeps something derived from them works it out anew.
"""

from math import erfc, exp, log, pi, sqrt

import msgspec

from seer_sgl.router.core.state import Group

PAST_GROUPS = 4096
"""Groups of the past that count; older ones fade, as the model that makes the lengths changes."""
PAST_PROMPTS = 100_000
"""Prompts whose lengths are remembered."""
NEXT_TIME = 0.2
"""Deviation of a prompt's mean from one iteration to the next: the model has changed."""

DRIFT = 0.05
"""A new edition is due when a common value, a logarithm, has moved so far."""

_NEWTON_STEPS = 2
"""Enough, as each starts from where the last one for the group ended."""
_LEARNED_TOGETHER = 8
"""The common values are worked out once for so many groups: they move slowly."""
_NEGLIGIBLE = -2.5
"""A sample that runs still and is so many deviations below its group's mean tells nothing."""


class LengthPrior(msgspec.Struct, frozen=True):
    """What is assumed before anything has been seen, and for how much it counts beside what is seen.

    Logarithms have base e. The deviations are typical of the groups of reasoning models' outputs.
    """

    share_of_limit: float = 0.25
    """Typical length as a share of `max_new_tokens`."""
    between: float = 0.8
    """Standard deviation of the groups' means."""
    within: float = 0.5
    """Standard deviation within a group."""
    groups: float = 8.0
    """Counts as so many groups, and as many samples for `within`."""


class LengthContext:
    """What is common to all groups, and each group's own mean as its samples tell it."""

    def __init__(self, prior: LengthPrior | None = None) -> None:
        self.prior = prior or LengthPrior()
        self.shift = 0.0
        """What all groups' means have shown to lie above what was assumed."""
        self.between = self.prior.between
        self.within = self.prior.within
        self.edition = 0
        self._published = (self.shift, self.between, self.within)
        self._learned = 0
        # Over the live groups: how many, and their shares as `Group.learned` has them.
        self._groups = self._shifts = self._squares = self._samples = self._residues = 0.0
        self._past = [0.0] * 5
        """The same over those that are gone."""
        self._prompts: dict[str, tuple[float, float]] = {}

    def recall(self, group: Group) -> None:
        """Begin a group with what an earlier one of the same prompt has shown."""
        known = self._prompts.get(group.prompt_key)
        if known is not None:
            group.prior = known
            group.log_mean, group.log_variance = known

    def remember(self, group: Group) -> None:
        """Keep what a group that is done has shown: of its prompt, and of lengths as such."""
        if group.learned is None:
            return
        shift, square, samples, residue = group.learned
        self._groups -= 1
        self._shifts -= shift
        self._squares -= square
        self._samples -= samples
        self._residues -= residue
        share = (1.0, shift, square, samples, residue)
        faded = 0.5 if self._past[0] >= PAST_GROUPS else 1.0
        self._past = [faded * past + new for past, new in zip(self._past, share, strict=True)]
        if group.prompt_key:
            self._prompts.pop(group.prompt_key, None)
            if len(self._prompts) >= PAST_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
            self._prompts[group.prompt_key] = (group.log_mean, group.log_variance + NEXT_TIME**2)

    def refresh(self, group: Group) -> None:
        """Work out anew what is known of a group, where something is."""
        if group.learned is not None:
            self.learn(group)

    def center(self, max_new_tokens: int) -> float:
        """Mean of the logarithms of lengths in a group of which nothing is known."""
        return log(max(2.0, self.prior.share_of_limit * max_new_tokens)) + self.shift

    def learn(self, group: Group) -> None:
        """Take into account that one of the group's samples has moved on."""
        center, within = self.center(group.max_new_tokens), self.within
        bounds = [(log(tokens), count) for tokens, count in group.underway.items()]
        mean, variance = self._own_mean(group, center, bounds)
        samples = group.finished_count
        residue = group.finished_log_squares + mean * (samples * mean - 2 * group.finished_log_sum)
        residue = max(0.0, residue)
        for bound, count in bounds:
            z = (bound - mean) / within
            beyond = z * normal_hazard(z) if z > _NEGLIGIBLE else 0.0
            residue += count * within * within * (1.0 + beyond)
            samples += count
        distance = mean - center
        before = group.learned or (0.0, 0.0, 0, 0.0)
        shift, square = distance + self.shift, distance * distance + variance
        residue += samples * variance
        self._groups += group.learned is None
        self._shifts += shift - before[0]
        self._squares += square - before[1]
        self._samples += samples - before[2]
        self._residues += residue - before[3]
        group.log_mean, group.log_variance = mean, variance
        group.learned = shift, square, samples, residue
        self._learned += 1
        if self._learned % _LEARNED_TOGETHER == 0:
            self._conclude()

    def _conclude(self) -> None:
        """Work out the common values from the sums."""
        prior, weight = self.prior, self.prior.groups
        past_groups, past_shifts, past_squares, past_samples, past_residues = self._past
        groups = weight + past_groups + self._groups
        samples = weight + past_samples + self._samples
        squares = weight * prior.between**2 + past_squares + self._squares
        residues = weight * prior.within**2 + past_residues + self._residues
        self.shift = (past_shifts + self._shifts) / groups
        self.between = sqrt(squares / groups)
        self.within = sqrt(residues / samples)
        now = (self.shift, self.between, self.within)
        if max(abs(a - b) for a, b in zip(now, self._published, strict=True)) > DRIFT:
            self.edition, self._published = self.edition + 1, now

    def _own_mean(
        self, group: Group, center: float, bounds: list[tuple[float, int]]
    ) -> tuple[float, float]:
        """Mean and variance of the group's mean: Newton's method on the posterior's logarithm."""
        within, precision = self.within, self.within**-2
        common = self.between**-2
        if group.prior is not None:
            center, common = group.prior[0], 1.0 / group.prior[1]
        curvature = exact = common + precision * group.finished_count
        pulled = common * center + precision * group.finished_log_sum
        if not bounds:
            return pulled / exact, 1.0 / exact
        mean = group.log_mean if group.learned else pulled / exact
        for _ in range(_NEWTON_STEPS):
            slope, curvature = pulled - exact * mean, exact
            for bound, count in bounds:
                z = (bound - mean) / within
                if z > _NEGLIGIBLE:
                    hazard = normal_hazard(z)
                    slope += count * hazard / within
                    curvature += count * hazard * (hazard - z) * precision
            mean += slope / curvature
        return mean, 1.0 / curvature


def normal_hazard(z: float) -> float:
    """Density over upper tail of the standard normal distribution."""
    if z > 6.0:
        return z + 1.0 / z  # asymptotic; the tail itself runs out of digits later
    return exp(-z * z / 2.0) * sqrt(2.0 / pi) / erfc(z / sqrt(2.0))
