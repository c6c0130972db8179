"""How much to draft in a step, from what rows cost and what drafts bring. Pure.

Three readings of what a draft token is worth. The first two plan before anything is drafted, one depth
for probes and one for the others, as the Seer paper's Algorithm 1 does (arXiv 2511.14617v3, 3.4):

* `paper`: the drop of acceptance at that depth, as printed;
* `marginal`: the chance that the token is accepted;
* `confidence`: this draft's own calibrated chance, node by node. The best nodes of all requests are
  taken while they raise the expected tokens per second of the step.

`cap` says before drafting how much is worth drafting at all, `choose` afterwards what to verify. Where
nothing pays, the step is a plain one. Every so often a step is of another width than the best, so that
the costs of widths that are not used stay known; how often bounds what that costs to `EXPLORING`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from seer_sgl.spec.acceptance import Acceptance, Floats, Floats32, IntArray
from seer_sgl.spec.compiled import kernel
from seer_sgl.spec.cost import Curve, Step, StepCost, rows_s, verified_s

Reading: TypeAlias = Literal["paper", "marginal", "confidence"]
Mask: TypeAlias = npt.NDArray[np.bool_]

EXPLORING = 0.01
"""Share of the time that steps of another width than the best may cost."""
EXPLORE_STEPS = 64
"""The least distance of two of them."""
FREE_NODES = 512
"""Draft tokens of a step that cost next to nothing to draft: some 30 us."""
IDLE_STEPS = 8
"""Where drafts have not paid for long, only one step in so many drafts at all."""
SHADES = 512
"""Steps into which confidences are sorted."""


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the engine can do, and what is wanted."""

    reading: Reading = "confidence"
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Rows of a request, the root included. Uniform batches take one of them, and so do explorations."""
    max_nodes: int = 31
    """Draft tokens of a request at most; less than the last width."""
    uniform: bool = False
    """The engine verifies batches of one width only, as captured CUDA graphs do."""
    priority: float = 2.0
    """Lambda of the paper: how much a probe's token is worth (its own choice, 4.1)."""
    deepest: int = 8
    """Draft tokens of a request at most, as planned by `paper` and `marginal` (same place)."""
    margin: float = 0.02
    """Drafting starts where it is expected to bring so much more tokens per second, as a share, and goes
    on while it brings any more."""


class Load(NamedTuple):
    """The batch of a step."""

    requests: int
    probes: int
    """Of these, samples that go ahead of their group."""
    kv_tokens: float


class Budget:
    """Decides step by step. `cap`, then `choose` where it was not 0, then `observe`.

    Args:
        cost: what steps take; `observe` feeds it.
        acceptance: what drafts bring; its owner feeds it.
    """

    def __init__(self, rules: Rules, cost: StepCost, acceptance: Acceptance) -> None:
        self.rules = rules
        self.cost = cost
        self.acceptance = acceptance
        self.explored = 0
        """Steps whose width was not the best on purpose."""
        self._drafting = False
        self._most_used = 0
        self._idle = 0
        """Steps in a row for which nothing was worth verifying."""
        self._steps_left = EXPLORE_STEPS
        self._turns = 0
        self._forced = -1
        """Draft tokens per request of a step that explores; -1: none."""
        self._planned = (0, 0)
        self._most_rows = 0

    def cap(self, load: Load) -> int:
        """Draft tokens per request to draft at most; 0: decode plainly, and do not call `choose`."""
        if not load.requests:
            return 0
        self._forced = self._exploration(load)
        if self._forced >= 0:
            return min(self._forced, self.rules.max_nodes)
        return self._worth_drafting(load) if self.cost.known else 0

    def choose(
        self,
        load: Load,
        starts: IntArray,
        confidences: Floats32,
        probes: Mask,
        depths: IntArray | None = None,
    ) -> IntArray:
        """Draft tokens to verify, request by request: the first ones of its draft.

        Args:
            starts, confidences, depths: the step's drafts, as in `Drafts`. Without depths they are
                taken for chains.
            probes: which requests are probes.
        """
        drafted = np.diff(starts).astype(np.int32)
        if self._forced >= 0:
            return np.asarray(np.minimum(drafted, self._forced), np.int32)
        if self.rules.reading != "confidence":
            high, low = self._planned
            return np.asarray(np.minimum(drafted, np.where(probes, high, low)), np.int32)
        curve = self.cost.curve(load.requests, load.kv_tokens)
        weights = np.where(probes, self.rules.priority, 1.0)
        margin = 0.0 if self._drafting else self.rules.margin
        if depths is None:
            depths = (np.arange(1, confidences.size + 1) - np.repeat(starts[:-1], drafted)).astype(
                np.int32
            )
        honest = self.acceptance.calibrated(confidences, depths)
        if self.rules.uniform:
            nodes = _one_width(starts, honest, weights, curve, np.array(self.rules.widths), margin)
        else:
            nodes = _best_nodes(starts, honest, weights, curve, self.rules.max_nodes, margin)
        self._most_used = int(nodes.max()) if nodes.size else 0
        self._drafting = self._most_used > 0
        self._idle = 0 if self._drafting else self._idle + 1
        return nodes

    def observe(self, step: Step, step_s: float) -> None:
        """How long the step took."""
        self.cost.observe(step, step_s)
        self._most_rows = max(self._most_rows, step.rows)

    # ---- exploring ----

    def _exploration(self, load: Load) -> int:
        """Draft tokens of each request if this step explores, else -1."""
        self._steps_left -= 1
        if self._steps_left > 0 or len(self.rules.widths) < 2:
            return -1
        self._turns += 1
        self.explored += 1
        width = 1
        if self._turns % 2 or not self._drafting:
            # No more than twice what has been tried: what it costs is never a great surprise.
            most = max(self.rules.widths[1], 2 * self._most_rows // load.requests)
            tried = [width for width in self.rules.widths[1:] if width <= most]
            width = tried[self._turns // 2 % len(tried)]
        self._steps_left = self._pause(load, width)
        return width - 1

    def _pause(self, load: Load, width: int) -> int:
        """Steps until the next exploration, so that this one costs little of them."""
        if not self.cost.known:
            return EXPLORE_STEPS
        plain_s = self.cost.seconds(Step(load.requests, load.requests, load.kv_tokens))
        wide_s = self.cost.seconds(Step(load.requests, load.requests * width, load.kv_tokens))
        # A plain step instead of drafts loses what these bring: at most their width.
        lost = wide_s / plain_s - 1.0 if width > 1 else self.acceptance.rate * self._most_used
        return max(EXPLORE_STEPS, int(np.ceil(lost / EXPLORING)))

    # ---- what pays ----

    def _worth_drafting(self, load: Load) -> int:
        curve = self.cost.curve(load.requests, load.kv_tokens)
        if self.rules.reading != "confidence":
            self._planned = self._plan(load, curve)
            return max(self._planned)
        if not self._could_pay(load.requests, curve):
            self._drafting, self._most_used = False, 0
            return 0
        if self._resting():
            return 0
        return min(self.rules.max_nodes, max(FREE_NODES // load.requests, 2 * self._most_used + 1))

    def _could_pay(self, requests: int, curve: Curve) -> bool:
        """Whether drafts could pay if every token of them were accepted."""
        widths = self.rules.widths[1:]
        if self.rules.uniform:
            sizes = [requests * (width - 1) for width in widths]
        else:
            most = requests * self.rules.max_nodes
            sizes = [most >> halvings for halvings in range(most.bit_length())]
        token_s = curve.plain_s / requests / (1 + self.rules.margin)
        rows = (requests + extra for extra in sizes)
        return any(verified_s(curve, requests, count) < count * token_s for count in rows)

    def _resting(self) -> bool:
        """Whether this step goes without drafts, as they have not paid for long."""
        if self._idle < 4 * IDLE_STEPS or self._idle % IDLE_STEPS == 0:
            return False
        self._idle += 1
        return True

    def _plan(self, load: Load, curve: Curve) -> tuple[int, int]:
        """Draft tokens of a probe and of another request."""
        rules, requests = self.rules, load.requests
        deepest = min(rules.deepest, rules.max_nodes)
        step_s = [curve.plain_s]
        step_s += [verified_s(curve, requests, requests * (1 + n)) for n in range(1, deepest + 1)]
        depth = best_depth(step_s, self.acceptance.rate, 0.0 if self._drafting else rules.margin)
        self._drafting = depth > 0
        self._most_used = depth
        if rules.uniform:
            depth = max(width for width in rules.widths if width <= depth + 1) - 1
            return depth, depth
        reach = self.acceptance.reach
        gains = reach[:-1] - reach[1:] if rules.reading == "paper" else reach[1:]
        return divide(
            depth * requests,
            load.probes,
            requests - load.probes,
            gains.__getitem__,
            deepest,
            rules.priority,
        )


def best_depth(step_s: list[float], acceptance: float, margin: float) -> int:
    """The draft length of least time per token, 0 where none beats a plain step by `margin`.

    Args:
        step_s: seconds of a step by draft length, from 0 on.
        acceptance: chance of each draft token, given those before it.
    """
    best, least_s = 0, step_s[0] / (1.0 + margin)
    tokens, chance = 1.0, 1.0
    for depth in range(1, len(step_s)):
        chance *= acceptance
        tokens += chance
        if step_s[depth] / tokens < least_s:
            best, least_s = depth, step_s[depth] / tokens
    return best


def divide(
    budget: int, probes: int, others: int, gain: Callable[[int], float], deepest: int, priority: float
) -> tuple[int, int]:
    """Share a step's draft tokens out to probes and others: the loop of the paper's Algorithm 1.

    Args:
        budget: draft tokens of all requests together.
        gain: what a request's next token is worth once it has so many, 0 to `deepest`.
        deepest: most of one request.
        priority: lambda; as printed, by how much probes must be ahead to be served first.

    Returns:
        draft tokens of each probe, and of each other request.
    """
    if budget < max(1, probes):
        return 0, 0
    high, low, left = 1, 0, budget - probes
    while left > 0:
        ahead = probes * gain(high) > priority * others * gain(low)
        if ahead and high < deepest and left >= probes:
            high, left = high + 1, left - probes
        elif others and low < deepest and left >= others:
            low, left = low + 1, left - others
        else:
            break
    return (high if probes else 0), low


@kernel
def _best_nodes(
    starts: IntArray, chances: Floats32, weights: Floats, curve: Curve, most: int, margin: float
) -> IntArray:
    """Draft tokens per request of the step that brings most tokens, by weight, per second."""
    requests = starts.size - 1
    nodes = np.zeros(requests, np.int32)
    if not chances.size:
        return nodes
    heaviest, worth = 0.0, 0.0
    for request in range(requests):
        heaviest = max(heaviest, weights[request])
        worth += weights[request]
    order, owners = _best_first(starts, chances, weights / heaviest, most)
    plain_rate = requests / curve.plain_s
    best, best_rate = 0, worth / curve.plain_s * (1.0 + margin)
    tokens, seconds = float(requests), curve.verify_s + rows_s(curve.row_s, requests)
    octave, last = 0, 2
    while last < requests + 1 and octave < curve.row_s.size - 1:
        octave, last = octave + 1, 2 * last
    for count in range(order.size):
        if requests + count + 1 > last and octave < curve.row_s.size - 1:
            octave, last = octave + 1, 2 * last
        node, owner = order[count], owners[count]
        tokens += chances[node]
        worth += weights[owner] * chances[node]
        seconds += curve.row_s[octave] + curve.extra_row_s
        if worth > best_rate * seconds and tokens > plain_rate * (1.0 + margin) * seconds:
            best, best_rate = count + 1, worth / seconds
    for count in range(best):
        nodes[owners[count]] += 1
    return nodes


@kernel
def _best_first(
    starts: IntArray, chances: Floats32, weights: Floats, most: int
) -> tuple[IntArray, IntArray]:
    """All nodes by weighted chance, those of one request in their order, and whose each is."""
    size = chances.size
    shades, owners = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    counts = np.zeros(SHADES + 2, np.int32)
    for request in range(starts.size - 1):
        shade = 0
        for node in range(starts[request], min(starts[request + 1], starts[request] + most)):
            # The best has shade 0; a node that seems better than the one before still comes after it.
            darker = SHADES - int(weights[request] * min(1.0, chances[node]) * SHADES)
            shade = max(shade, darker)
            shades[node], owners[node] = shade, request
            counts[shade + 1] += 1
    places = np.cumsum(counts)
    total = places[-1]
    order, whose = np.zeros(total, np.int32), np.zeros(total, np.int32)
    for node in range(size):
        shade = shades[node]
        if shade >= 0:
            order[places[shade]], whose[places[shade]] = node, owners[node]
            places[shade] += 1
    return order, whose


@kernel
def _one_width(
    starts: IntArray,
    chances: Floats32,
    weights: Floats,
    curve: Curve,
    widths: npt.NDArray[np.int64],
    margin: float,
) -> IntArray:
    """The same where all requests have the same width: those with less drafted are padded."""
    requests = starts.size - 1
    nodes = np.zeros(requests, np.int32)
    best_width, best_rate = 1, weights.sum() / curve.plain_s * (1.0 + margin)
    plain_rate = requests / curve.plain_s
    for place in range(1, widths.size):
        width = widths[place]
        rows = requests * width
        seconds = curve.verify_s + rows_s(curve.row_s, rows)
        seconds += curve.extra_row_s * (rows - requests)
        tokens, worth = float(requests), weights.sum()
        for request in range(requests):
            for node in range(starts[request], min(starts[request + 1], starts[request] + width - 1)):
                tokens += chances[node]
                worth += weights[request] * chances[node]
        if worth > best_rate * seconds and tokens > plain_rate * (1.0 + margin) * seconds:
            best_width, best_rate = width, worth / seconds
    for request in range(requests):
        nodes[request] = min(starts[request + 1] - starts[request], best_width - 1)
    return nodes
