"""Generated step-by-step problems with a checkable answer.

A problem is a digit recurrence ``v <- (v * factor + addend) mod 10`` repeated for a
number of rounds. The number of rounds sets the length of the solution; it is drawn from
a clipped lognormal, so lengths have a long tail. Every round restates the rounds left,
the value and both operands, so the next round can be written from the last one alone.

Solutions imitate a writer who slips now and then and re-checks some rounds: a re-check
repairs a slip of its round. A policy that slips less, or checks more, earns more reward.
"""

import math
import random
import re
from dataclasses import dataclass
from statistics import NormalDist

MIN_ROUNDS = 2
MAX_ROUNDS = 100
MEDIAN_ROUNDS = 8.0
SIGMA_LOG_ROUNDS = 1.0
SLIP_RATE = 0.04
"""Chance that one round of a training solution holds a wrong digit."""

RESTART_RATE = 0.06
RESTART_WITHIN_ROUNDS = 8
CHECK_RATES = (0.03, 0.12, 0.3)
FAVOURITE_RATE = 0.65

_PROMPTS = (
    "Start at {v}. Each round: times {a}, plus {b}, keep the last digit. Do {n} rounds.\n",
    "Begin with {v}. In each round take it times {a}, plus {b}, last digit only. "
    "Give the digit after {n} rounds.\n",
    "The digit is {v}. One round is times {a}, plus {b}, last digit. What is it after {n} rounds?\n",
)
_OPENINGS = ("", "We go round by round.\n", "Let us work it out.\n", "Here we go.\n")
_HEADS = ("Left {n}: ", "Now {n} left: ", "Still {n} to go: ", "Rounds left {n}: ")
_TIMES = ("{v} times {a} is {m}", "{v} times {a} gives {m}", "{v} by {a} makes {m}")
_PLUS = (", plus {b} is {w}", ", and {b} more is {w}", ", then add {b} for {w}")
_ENDS = (".\n", ", good.\n", ", so we hold {w}.\n")
_CHECKS = ("Check: ", "Let me check: ", "Again: ")
_VERDICTS = (". Fine.\n", ". Yes.\n", ". It is {w}.\n")
_REPAIRS = (". No, so {w}.\n", ". Wrong before, it is {w}.\n")
_RESTARTS = ("Wait, start over.\n", "Not sure, from the top.\n")
_ANSWERS = ("The answer is {w}.", "Done. The answer is {w}.", "No rounds left. The answer is {w}.")

_ANSWER_AT_END = re.compile(r"The answer is (\d)\.\s*\Z")
_EOS_TEXT = "<eos>"


@dataclass(frozen=True)
class Problem:
    """One recurrence: ``start``, ``factor`` and ``addend`` are digits, ``rounds`` a count."""

    start: int
    factor: int
    addend: int
    rounds: int

    def step(self, value: int) -> tuple[int, int]:
        """Return the last digits after the product and after the sum of one round."""
        product = value * self.factor % 10
        return product, (product + self.addend) % 10

    def answer(self) -> int:
        """Return the digit after all rounds."""
        value = self.start
        for _ in range(self.rounds):
            value = self.step(value)[1]
        return value


@dataclass(frozen=True)
class _Style:
    """Favourite phrase of each kind, and the re-check rate, of one solution."""

    head: str
    times: str
    plus: str
    end: str
    check_rate: float


def draw_rounds(rng: random.Random, low: float = 0.0, high: float = 1.0) -> int:
    """Draw a number of rounds from the part of the lognormal between two quantiles."""
    quantile = min(max(low + (high - low) * rng.random(), 1e-9), 1.0 - 1e-9)
    rounds = MEDIAN_ROUNDS * math.exp(SIGMA_LOG_ROUNDS * NormalDist().inv_cdf(quantile))
    return min(max(round(rounds), MIN_ROUNDS), MAX_ROUNDS)


def draw_problem(rng: random.Random, rounds: int | None = None) -> Problem:
    """Draw a problem; ``rounds`` fixes its size."""
    size = draw_rounds(rng) if rounds is None else rounds
    return Problem(rng.randrange(10), rng.randrange(2, 10), rng.randrange(1, 10), size)


def render_prompt(problem: Problem, rng: random.Random) -> str:
    """Return the prompt text of a problem, in one of a few wordings."""
    return rng.choice(_PROMPTS).format(
        v=problem.start, a=problem.factor, b=problem.addend, n=f"{problem.rounds:03d}"
    )


def parse_prompt(prompt: str) -> Problem:
    """Read a problem back from its prompt; raise ValueError where it is none."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    if len(numbers) != 4:
        raise ValueError(f"a prompt holds 4 numbers, this one {len(numbers)}: {prompt!r}")
    return Problem(*numbers)


def render_solution(problem: Problem, rng: random.Random, slip_rate: float = SLIP_RATE) -> str:
    """Return one solution in random wording; with ``slip_rate`` 0 its answer is correct."""
    style = _Style(
        rng.choice(_HEADS),
        rng.choice(_TIMES),
        rng.choice(_PLUS),
        rng.choice(_ENDS),
        rng.choice(CHECK_RATES),
    )
    parts = [rng.choice(_OPENINGS)]
    if rng.random() < RESTART_RATE:
        abandoned = rng.randint(1, min(RESTART_WITHIN_ROUNDS, problem.rounds))
        _write_rounds(parts, problem, abandoned, style, rng, slip_rate)
        parts.append(rng.choice(_RESTARTS))
    value = _write_rounds(parts, problem, problem.rounds, style, rng, slip_rate)
    parts.append(rng.choice(_ANSWERS).format(w=value))
    return "".join(parts)


def reward(prompt: str, output_text: str) -> float:
    """Return 1.0 where the output ends by itself with the correct answer, else 0.0.

    An output cut off by a length cap does not end with the answer sentence.
    """
    found = _ANSWER_AT_END.search(output_text.removesuffix(_EOS_TEXT))
    if found is None:
        return 0.0
    return 1.0 if int(found.group(1)) == parse_prompt(prompt).answer() else 0.0


def prompts(count: int, seed: int) -> list[str]:
    """Return ``count`` prompts, the same for the same arguments.

    Sizes are stratified: one from each of ``count`` equal slices of the distribution, in
    random order, so that even few prompts hold the long tail.
    """
    rng = random.Random(seed)
    sizes = [draw_rounds(rng, i / count, (i + 1) / count) for i in range(count)]
    rng.shuffle(sizes)
    return [render_prompt(draw_problem(rng, size), rng) for size in sizes]


def _write_rounds(
    parts: list[str],
    problem: Problem,
    count: int,
    style: _Style,
    rng: random.Random,
    slip_rate: float,
) -> int:
    """Append the first ``count`` rounds to ``parts``; return the value they end on."""
    value = problem.start
    for done in range(count):
        head = _favour(style.head, _HEADS, rng)
        parts.append(head.format(n=f"{problem.rounds - done:03d}"))
        product, result = problem.step(value)
        if rng.random() < slip_rate:
            product, result = _slip(problem, product, result, rng)
        parts.append(_sentence(problem, value, product, result, style, rng))
        parts.append(_favour(style.end, _ENDS, rng).format(w=result))
        if rng.random() < style.check_rate:
            result = _write_check(parts, problem, value, result, style, rng)
        value = result
    return value


def _write_check(
    parts: list[str],
    problem: Problem,
    value: int,
    claimed: int,
    style: _Style,
    rng: random.Random,
) -> int:
    """Append a re-check of one round; return its correct result."""
    product, result = problem.step(value)
    parts.append(rng.choice(_CHECKS))
    parts.append(_sentence(problem, value, product, result, style, rng))
    verdicts = _VERDICTS if result == claimed else _REPAIRS
    parts.append(rng.choice(verdicts).format(w=result))
    return result


def _sentence(
    problem: Problem, value: int, product: int, result: int, style: _Style, rng: random.Random
) -> str:
    times = _favour(style.times, _TIMES, rng).format(v=value, a=problem.factor, m=product)
    plus = _favour(style.plus, _PLUS, rng).format(b=problem.addend, w=result)
    return times + plus


def _slip(problem: Problem, product: int, result: int, rng: random.Random) -> tuple[int, int]:
    """Make the product (and the sum built on it) or the sum alone wrong."""
    shift = rng.randrange(1, 10)
    if rng.random() < 0.5:
        product = (product + shift) % 10
        return product, (product + problem.addend) % 10
    return product, (result + shift) % 10


def _favour(favourite: str, choices: tuple[str, ...], rng: random.Random) -> str:
    return favourite if rng.random() < FAVOURITE_RATE else rng.choice(choices)
