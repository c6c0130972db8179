"""CPU time that drafters take on one load for all, interleaved.

The load is late in a rollout: groups with finished samples and requests in mid-answer. Requests are the
first halves of further samples, and grow by `STEP_TOKENS` a step. Warm, single calls serve one group for
all its steps before the next, and all drafts are asked for again and again; cold, every step goes round
all groups, and asks for drafts of one shape only.
"""

import ctypes
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from bench.replay import IntArray, Shape

STEP_TOKENS = 3
CALL_REQUESTS = 64
"""Of those that take many in one call."""
WARM_CALLS = 4
"""How often the same drafts are asked for, after once that is not measured."""
SHAPES = (Shape(8, True), Shape(16, True), Shape(8, False), Shape(16, False), Shape(32, False))
Costs = dict[str, float]


@dataclass(frozen=True)
class Load:
    """Finished samples by group, and requests: each of one group, with what it has said and will say."""

    finished: list[list[IntArray]]
    live: int
    """Requests of each group; those of a group are neighbours."""
    said: list[IntArray]
    steps: list[list[IntArray]]
    """What each request says in each step, `STEP_TOKENS` each."""

    @property
    def tokens(self) -> int:
        """Once all steps are done."""
        said = sum(part.size for part in self.said) + STEP_TOKENS * sum(map(len, self.steps))
        return said + sum(sample.size for group in self.finished for sample in group)


def make_load(groups: Sequence[Sequence[IntArray]], finished: int, live: int, steps: int) -> Load:
    """The first samples of each group are finished, the next `live` long enough are in mid-answer."""
    needed = 2 * STEP_TOKENS * steps
    load = Load([], live, [], [[] for _ in range(steps)])
    for group in groups:
        running = [sample for sample in group[finished:] if sample.size > needed][:live]
        if len(running) < live:
            continue
        load.finished.append(list(group[:finished]))
        for sample in running:
            half = sample.size // 2
            load.said.append(sample[:half].copy())
            for step in range(steps):
                first = half + step * STEP_TOKENS
                load.steps[step].append(sample[first : first + STEP_TOKENS].copy())
    return load


class Subject(Protocol):
    """A drafter whose cost is measured: all but `open`, `join` and `ready`, where arguments are made."""

    name: str
    shapes: Sequence[Shape]
    together: bool
    """Takes many requests in one call."""
    own_thread: bool
    """Appends in a thread of its own: CPU time is the process's then."""

    def open(self, load: Load) -> None:
        """Make an empty state with room for that load."""

    def take(self, group: int, samples: Sequence[IntArray]) -> None:
        """Finished samples of a group, a call for each."""

    def join(self, load: Load) -> None:
        """Requests with what they have said."""

    def ready(self, requests: range, rows: Sequence[IntArray]) -> None:
        """These requests are going to say this, and to ask for drafts then."""

    def grow(self, together: bool) -> None:
        """They say it; one call each or one for all."""

    def draft(self, shape: Shape, together: bool) -> None:
        """For each of them, one call each or one for all."""

    def bytes_per_token(self) -> float | None:
        """Held for the load, if that can be told."""


MakeSubjects = Callable[[Load], Iterator[Subject]]
"""Makes one after another for a load, each when it is its turn."""


class Timer:
    """CPU nanoseconds by name, and for how many tokens or requests they were spent."""

    def __init__(self) -> None:
        self.spent_ns: dict[str, int] = defaultdict(int)
        self.counts: dict[str, int] = defaultdict(int)

    def run(self, name: str, count: int, clock: Callable[[], int], work: Callable[[], None]) -> None:
        """Time one piece of work."""
        began_ns = clock()
        work()
        self.spent_ns[name] += clock() - began_ns
        self.counts[name] += count

    def us(self) -> Costs:
        """Microseconds each."""
        return {name: ns / 1_000 / self.counts[name] for name, ns in self.spent_ns.items()}


def measure(subject: Subject, load: Load, timer: Timer, warm: bool) -> None:
    """One pass over the load: the first half of the steps with single calls, the others together."""
    clock = time.process_time_ns if subject.own_thread else time.thread_time_ns
    prefix = "" if warm else "cold "
    subject.open(load)
    for group, samples in enumerate(load.finished):
        tokens = sum(sample.size for sample in samples)
        timer.run(f"{prefix}append_sample", tokens, clock, partial(subject.take, group, samples))
    subject.join(load)
    for requests, step, together in visits(load, warm):
        if together and not subject.together:
            continue
        label = " together" if together else ""
        subject.ready(requests, load.steps[step][requests.start : requests.stop])
        grow, tokens = partial(subject.grow, together), STEP_TOKENS * len(requests)
        timer.run(f"{prefix}append_3{label}", tokens, clock, grow)
        for shape in subject.shapes if warm else [subject.shapes[step % len(subject.shapes)]]:
            draft = partial(subject.draft, shape, together)
            if warm:
                draft()
            for _ in range(WARM_CALLS if warm else 1):
                timer.run(f"{prefix}{shape.label}{label}", len(requests), time.thread_time_ns, draft)


def visits(load: Load, warm: bool) -> Iterator[tuple[range, int, bool]]:
    """Which requests take which step, and whether in one call."""
    everybody = len(load.said)
    size = load.live if warm else everybody
    half = len(load.steps) // 2
    for first in range(0, everybody, size):
        yield from ((range(first, first + size), step, False) for step in range(half))
    for step in range(half, len(load.steps)):
        yield range(everybody), step, True


def medians(
    make_subjects: MakeSubjects, loads: Sequence[Load], repeats: int, warm: bool
) -> dict[str, Costs]:
    """By subject's name; every repeat measures each, the first is a warm-up and not counted."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for repeat in range(repeats + 1):
        timers: dict[str, Timer] = defaultdict(Timer)
        for load in loads:
            for subject in make_subjects(load):
                measure(subject, load, timers[subject.name], warm)
                if repeat and warm and (held := subject.bytes_per_token()) is not None:
                    found[subject.name]["bytes_per_token"].append(held)
                del subject
                gc.collect()
        for subject_name, timer in timers.items() if repeat else ():
            for name, value in timer.us().items():
                found[subject_name][name].append(value)
    return {
        name: {key: statistics.median(values) for key, values in costs.items()}
        for name, costs in found.items()
    }


MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def heap_bytes() -> int | None:
    """In use of the C library's heap, where it tells."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def joined(rows: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Where each row starts, and all rows one after another."""
    starts = np.concatenate([[0], np.cumsum([row.size for row in rows])]).astype(np.int32)
    return starts, np.concatenate(rows)
