"""Keeps a rollout's course at equal steps of time, without knowing beforehand how long it will take."""

from seer_sgl.sim.engine import SimEngine
from seer_sgl.sim.result import Timeline

_FIRST_STEP_S = 0.01


class Recorder:
    """Between `points` and twice as many samples; the step doubles when there are more."""

    def __init__(self, engines: list[SimEngine], points: int) -> None:
        self._engines, self._points = engines, points
        self._step_s = _FIRST_STEP_S
        self._next_s = 0.0 if points else float("inf")
        self._rows: list[tuple[float, float, list[int], list[float]]] = []

    def until(self, now_s: float, finished_share: float) -> None:
        """Nothing has changed since the last call; take the samples that lie before `now_s`."""
        while self._next_s < now_s:
            self._take(self._next_s, finished_share)
            if len(self._rows) > 2 * self._points:
                del self._rows[1::2]
                self._step_s *= 2
            self._next_s = self._rows[-1][0] + self._step_s

    def timeline(self, end_s: float, finished_share: float) -> Timeline | None:
        """What was kept, with the end; None where nothing was to be kept."""
        if not self._points:
            return None
        self._take(end_s, finished_share)
        times, shares, running, kv = zip(*self._rows, strict=True)
        return Timeline(
            list(times),
            [list(series) for series in zip(*running, strict=True)],
            [list(series) for series in zip(*kv, strict=True)],
            list(shares),
        )

    def _take(self, at_s: float, finished_share: float) -> None:
        running = [engine.batch for engine in self._engines]
        kv = [engine.kv_at(at_s) / engine.model.kv_capacity_tokens for engine in self._engines]
        self._rows.append((at_s, finished_share, running, kv))
