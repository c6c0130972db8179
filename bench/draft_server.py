"""What a draft server sustains: engines that read each other, then a server killed under them.

    python -m bench.draft_server [--json FILE] [--quick]

64 engines run 256 requests each at 50 tokens a second. Requests come in groups of 16, each on another
engine; a group lasts 20 s, then another takes its place, so that the server's memory fills with groups
that are over. The engines are real clients (`seer_sgl/spec/client.py`) in two processes beside the
server, one loop for many engines where each would have a thread. A token is the time when it was due, so
each engine knows how old each token is that it reads, however late the machine is.

The second part kills the server (SIGKILL) and starts it again. `recovery_s` is from the moment the new
process listens until, over 0.1 s, 99 % of what engines read is at most 200 ms old again.
"""

import argparse
import multiprocessing
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import zmq
from numpy.typing import NDArray

from bench.report import Report, Row, finish
from seer_sgl.engine.process import free_port
from seer_sgl.spec.client import DraftClient, Line
from seer_sgl.spec.sharing.exchange import warm_up
from seer_sgl.spec.sharing.heads import AskStatistics, Statistics, encode, head_of
from seer_sgl.spec.sharing.reading import Records

ENGINES = 64
REQUESTS = 256
GROUP_SIZE = 16
STEP_S = 0.02
"""One token of every request."""
LIFE_S = 20.0
LINGER_S = 3.0
"""How long engines still read a group that is over: the last tokens are on their way."""
PROCESSES = 2
BUDGET_BYTES = 256 << 20
LAG_MS = 4000
WINDOW_S = 0.1
PROMISED_MS = 200
SETTLE_S = 3.0
"""Left out at the start: engines begin one after the other."""
DOWN_S = 1.0
"""How long the killed server stays away before it is started again."""

Counts = NDArray[np.int64]


@dataclass
class Plan:
    """One part of the benchmark."""

    name: str
    seconds: float
    kill_after_s: float | None = None


@dataclass
class Seen:
    """What one process saw."""

    ages: Counts
    """Tokens read, by window and age in ms."""
    generated: int = 0
    read: int = 0
    cpu_s: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)


class Engine:
    """One simulated engine; its sink notes how old what it reads is."""

    def __init__(self, number: int, address: str, began_s: float, seen: Seen) -> None:
        self.number = number
        self.client = DraftClient([address], f"engine {number}", self)
        self.due_s = began_s + STEP_S * (number / ENGINES)
        self._began_s = began_s
        self._seen = seen
        # Member j of a group is on the engine (group + 4 j) mod 64: each on another one.
        members = np.arange(REQUESTS) % GROUP_SIZE
        self._groups = (number - members * (ENGINES // GROUP_SIZE)) % ENGINES
        self._groups += np.arange(REQUESTS) // GROUP_SIZE * ENGINES
        self._members = members
        # Spread evenly, and the same on every engine of a group.
        self._ends_s = began_s + SETTLE_S + LIFE_S * self._groups / (REQUESTS * ENGINES // GROUP_SIZE)
        self._lives = np.zeros(REQUESTS, np.int64)
        self._numbers = np.array([self._open(index) for index in range(REQUESTS)], np.int32)
        self._counts = np.zeros(REQUESTS, np.int32)
        self._starts = np.arange(REQUESTS + 1, dtype=np.int32)
        self._leaving: list[tuple[float, str]] = []

    def step(self) -> None:
        """Every request generates a token; groups that are over make room."""
        self.turn_over(self.due_s)
        while self._leaving and self._leaving[0][0] <= self.due_s:
            self.client.release(self._leaving.pop(0)[1])
        stamp = int((self.due_s - self._began_s) * 1000)
        tokens = np.full(REQUESTS, stamp, np.int32)
        self.client.update_many(self._numbers, self._counts, self._starts, tokens)
        self._counts += 1
        self._seen.generated += REQUESTS
        self.due_s += STEP_S

    def turn_over(self, now_s: float) -> None:
        """Begin with the groups that follow those that are over."""
        for index in np.flatnonzero(self._ends_s <= now_s).tolist():
            self._leaving.append((self.due_s + LINGER_S, self._name(index)))
            self._lives[index] += 1
            self._ends_s[index] += LIFE_S
            self._counts[index] = 0
            self._numbers[index] = self._open(index)

    def receive(self, records: Records) -> None:
        """Note how old each token is."""
        now_s = time.monotonic() - self._began_s
        ages = np.clip(int(now_s * 1000) - records.tokens, 0, LAG_MS - 1)
        window = self._seen.ages[min(int(now_s / WINDOW_S), len(self._seen.ages) - 1)]
        window += np.bincount(ages, minlength=LAG_MS)
        self._seen.read += len(ages)

    def _open(self, index: int) -> int:
        return self.client.open(self._name(index), int(self._members[index]))

    def _name(self, index: int) -> str:
        return f"{self._groups[index]}.{self._lives[index]}"


def simulate(numbers: list[int], address: str, seconds: float, parent: Connection) -> None:
    """Run some of the engines in this process; tell what they saw."""
    warm_up()
    parent.send("ready")
    began_s: float = parent.recv()
    seen = Seen(np.zeros((int((seconds + 10) / WINDOW_S), LAG_MS), np.int64))
    engines = [Engine(number, address, began_s, seen) for number in numbers]
    with zmq.Context() as context:
        poller = zmq.Poller()
        lines = [engine.client.lines(context, poller)[0] for engine in engines]
        time.sleep(max(0.0, began_s - time.monotonic()))
        end_s = began_s + seconds
        cpu_s = time.process_time()
        while time.monotonic() < end_s:
            _turn(engines, lines, poller, end_s)
        seen.cpu_s = time.process_time() - cpu_s
        for engine in engines:
            engine.turn_over(end_s)  # as a sibling may have done, which had one more step
        drained_s = time.monotonic() + LINGER_S
        while time.monotonic() < drained_s:
            _turn(engines, lines, poller, 0.0)
        for line in lines:
            line.hang_up()
    for engine in engines:
        for name, value in engine.client.counters().items():
            seen.counters[name] = seen.counters.get(name, 0) + value
    parent.send(seen)


def _turn(engines: list[Engine], lines: list[Line], poller: zmq.Poller, end_s: float) -> None:
    """What is due now, and what comes within a few milliseconds."""
    now_s = time.monotonic()
    for engine, line in zip(engines, lines, strict=True):
        while engine.due_s <= min(now_s, end_s):
            engine.step()
        if line.due_s <= now_s:
            engine.client.tend(0, line)
    ready = dict(poller.poll(2))
    for engine, line in zip(engines, lines, strict=True):
        if line.socket in ready:
            engine.client.hear(0, line)


class Server:
    """The server's process, started again after it was killed; its CPU time and memory."""

    def __init__(self, port: int) -> None:
        self._argv = [
            *(sys.executable, "-m", "seer_sgl.spec.server", "--port", str(port)),
            *("--budget-bytes", str(BUDGET_BYTES)),
        ]
        self.memory_bytes = 0
        self._cpu_s = 0.0
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        self._popen = subprocess.Popen(self._argv, stderr=subprocess.PIPE, text=True)
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            if "drafts on" in line:
                break
        self._process = psutil.Process(self._popen.pid)
        self.forget_start()

    def forget_start(self) -> None:
        """Count no CPU time from before now."""
        self._before_s = self._own_s()

    def look(self) -> None:
        """Note its memory."""
        self.memory_bytes = max(self.memory_bytes, self._process.memory_info().rss)

    def kill(self) -> None:
        """As an accident would."""
        self._cpu_s += self._own_s() - self._before_s
        self._popen.send_signal(signal.SIGKILL)
        self._popen.communicate()

    @property
    def cpu_s(self) -> float:
        """CPU time so far, without what starting takes."""
        return self._cpu_s + self._own_s() - self._before_s

    def _own_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def measure(plan: Plan) -> Row:
    """One part: a row of figures."""
    port = free_port()
    server = Server(port)
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for part in range(PROCESSES):
        numbers = list(range(part, ENGINES, PROCESSES))
        ours, theirs = spawn.Pipe()
        args = (numbers, f"tcp://127.0.0.1:{port}", plan.seconds, theirs)
        processes.append(spawn.Process(target=simulate, args=args))
        processes[-1].start()
        pipes.append(ours)
    for pipe in pipes:
        pipe.recv()
    began_s = time.monotonic() + 2.0
    for pipe in pipes:
        pipe.send(began_s)
    server.forget_start()
    listens_s = _watch(server, plan, began_s)
    server_cpu_s = server.cpu_s
    seen = [pipe.recv() for pipe in pipes]
    counters = ask(port)
    server.kill()
    for process in processes:
        process.join()
    return _row(plan, seen, counters, server, server_cpu_s, listens_s)


def _watch(server: Server, plan: Plan, began_s: float) -> float:
    """Look after the server until the part is over; when a killed one listened again."""
    listens_s, is_killed = 0.0, plan.kill_after_s is None
    while (now_s := time.monotonic() - began_s) < plan.seconds:
        if not is_killed and plan.kill_after_s is not None and now_s >= plan.kill_after_s:
            is_killed = True
            server.kill()
            time.sleep(DOWN_S)
            server.start()
            listens_s = time.monotonic() - began_s
        server.look()
        time.sleep(0.1)
    return listens_s


def ask(port: int) -> dict[str, float]:
    """The server's own counts."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(encode(AskStatistics()))
        answer = head_of(dealer.recv_multipart())
    assert isinstance(answer, Statistics)
    return answer.counters


def _row(
    plan: Plan,
    seen: list[Seen],
    counters: dict[str, float],
    server: Server,
    server_cpu_s: float,
    listens_s: float,
) -> Row:
    ages = sum((part.ages for part in seen), np.zeros_like(seen[0].ages))
    steady = ages[int(SETTLE_S / WINDOW_S) : int(plan.seconds / WINDOW_S)].sum(axis=0)
    generated, read = sum(part.generated for part in seen), sum(part.read for part in seen)
    clients: dict[str, float] = {}
    for part in seen:
        for name, value in part.counters.items():
            clients[name] = clients.get(name, 0) + value
    row: Row = {
        "part": plan.name,
        "seconds": plan.seconds,
        "tokens_per_s": round(generated / plan.seconds),
        "read_tokens_per_s": round(read / plan.seconds),
        "lag_p50_ms": _quantile(steady, 0.5),
        "lag_p99_ms": _quantile(steady, 0.99),
        "lag_max_ms": _quantile(steady, 1.0),
        "server_cpu_share": round(server_cpu_s / plan.seconds, 3),
        "engine_cpu_share": round(sum(part.cpu_s for part in seen) / plan.seconds / ENGINES, 4),
        "server_memory_mib": round(server.memory_bytes / 2**20),
        "budget_mib": BUDGET_BYTES >> 20,
        "unread_tokens": generated * (GROUP_SIZE - 1) - read,
        "lost_calls": clients["lost_calls"],
        "evicted_groups": counters["evicted_groups"],
        "evicted_in_use": counters["evicted_in_use"],
        "refused_updates": sum(v for name, v in counters.items() if name.startswith("refused_")),
    }
    if listens_s:
        row["recovery_s"] = round(_recovered_s(ages, listens_s, plan.seconds) - listens_s, 1)
    return row


def _quantile(ages: Counts, share: float) -> int:
    """The age in ms that this share of the tokens does not exceed."""
    return int(np.searchsorted(np.cumsum(ages), share * ages.sum()))


def _recovered_s(ages: Counts, listens_s: float, seconds: float) -> float:
    """From when on every window is as promised; the end where none is."""
    late = [
        window
        for window in range(int(listens_s / WINDOW_S), int(seconds / WINDOW_S))
        if not ages[window].any() or _quantile(ages[window], 0.99) > PROMISED_MS
    ]
    return (late[-1] + 1) * WINDOW_S if late else listens_s


def figures_of(rows: list[Row]) -> dict[str, float]:
    """What the texts quote."""
    steady, killed = rows
    names = (
        "tokens_per_s lag_p50_ms lag_p99_ms server_cpu_share engine_cpu_share server_memory_mib "
        "unread_tokens refused_updates"
    )
    figures = {name: float(str(steady[name])) for name in names.split()}
    return {**figures, "recovery_s": float(str(killed["recovery_s"]))}


def main() -> None:
    """Measure both parts."""
    parser = argparse.ArgumentParser(description="What a draft server sustains.")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each part")
    args = parser.parse_args()
    plans = [Plan("steady", 60.0), Plan("killed", 40.0, kill_after_s=15.0)]
    if args.quick:
        plans = [Plan("steady", 10.0), Plan("killed", 16.0, kill_after_s=5.0)]
    rows = [measure(plan) for plan in plans]
    finish(Report("bench.draft_server", rows, figures_of(rows)), args.json)


if __name__ == "__main__":
    main()
