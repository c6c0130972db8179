"""What the recorder keeps of a rollout's course."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_sgl.sim.engine import Job, SimEngine
from seer_sgl.sim.model import EngineModel
from seer_sgl.sim.timeline import Recorder
from seer_sgl.types import ChunkId, RequestId

MODEL = EngineModel(1.0, 0.0, 0.0, 0.0, 0.0, 100, 1, 64)
"""One token a second."""


def busy(number: int) -> SimEngine:
    """An engine that runs one request: 10 tokens of KV, then one more each second."""
    engine = SimEngine(MODEL)
    engine.start(Job(ChunkId(number), RequestId(str(number)), 10, 50, 50, 50, 0))
    return engine


@given(st.integers(1, 20), st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60))
def test_samples_are_at_equal_steps_however_long_it_takes(points: int, waits: list[float]) -> None:
    recorder = Recorder([SimEngine(MODEL)], points)
    ends = list(itertools.accumulate(waits))
    for end_s in ends:
        recorder.until(end_s, 0.5)
    timeline = recorder.timeline(ends[-1], 1.0)
    assert timeline is not None
    *times, end_s = timeline.times_s
    steps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert end_s == ends[-1]
    assert steps == pytest.approx([steps[0]] * len(steps)) if steps else True
    assert times[-1] < end_s
    assert len(times) <= 2 * points
    if end_s > 0.02 * points:  # before that, the first step is too long for so many
        assert len(times) >= points
        assert end_s - times[-1] <= steps[0] * (1 + 1e-9) if steps else True


def test_a_sample_shows_the_state_at_its_time() -> None:
    engines = [busy(1), SimEngine(MODEL)]
    recorder = Recorder(engines, 5)
    recorder.until(20.0, 0.25)
    for engine in engines:
        engine.advance(20.0)
    engines[1].start(Job(ChunkId(2), RequestId("2"), 40, 50, 50, 50, 0))
    recorder.until(30.0, 0.75)
    timeline = recorder.timeline(30.0, 1.0)
    assert timeline is not None
    assert timeline.finished_share[-1] == 1.0
    early = [time_s < 20.0 for time_s in timeline.times_s[:-1]]
    assert any(early)
    assert not all(early)
    assert timeline.finished_share[:-1] == [0.25 if before else 0.75 for before in early]
    assert timeline.running[0] == [1] * len(timeline.times_s)
    assert timeline.running[1] == [0 if before else 1 for before in early] + [1]
    for series, start_s, held in ((timeline.kv_share[0], 0.0, 10), (timeline.kv_share[1], 20.0, 40)):
        expected = [(held + t - start_s) / 100 if t >= start_s else 0.0 for t in timeline.times_s]
        assert series == pytest.approx(expected)


def test_nothing_is_kept_where_nothing_is_asked_for() -> None:
    recorder = Recorder([busy(1)], 0)
    recorder.until(1e9, 0.5)
    assert recorder.timeline(1e9, 1.0) is None
