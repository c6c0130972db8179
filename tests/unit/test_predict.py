"""A rollout that ran beside what is predicted of it: the same samples, compared fairly."""

import pytest

from bench.predict import Forecaster, lengths_of, level_with, prediction_figures
from seer_sgl.rollout.client import SampleResult
from seer_sgl.router.core import POLICIES
from seer_sgl.router.core.settings import CoreSettings
from seer_sgl.sim.model import EngineModel

ENGINE = EngineModel(
    fixed_s=1.0,
    weights_s=0.0,
    token_s=0.0,
    kv_token_s=0.0,
    prefill_token_s=0.0,
    kv_capacity_tokens=10_000,
    page_tokens=1,
    max_running_requests=4,
    admission="sglang",
)


def result(group: str, sample: int, tokens: int, prompt_tokens: int = 10) -> SampleResult:
    meta = {"prompt_tokens": prompt_tokens}
    return SampleResult(group, sample, 200, 1.0, output_ids=[7] * tokens, meta_info=meta)


def test_lengths_stand_in_the_order_in_which_samples_were_sent() -> None:
    """Results come as they end; the tenth group is not the second."""
    results = [result("g10", 1, 4), result("g2", 0, 1), result("g10", 0, 3), result("g2", 1, 2)]
    assert lengths_of(results, ["g2", "g10"]) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollout_without_waiting_takes_as_long_as_its_longest_sample(policy: str) -> None:
    forecaster = Forecaster(ENGINE, 2, CoreSettings(chunk_tokens=16), 100)
    results = [result("a", 0, 5, 8), result("a", 1, 40, 8), result("b", 0, 90), result("b", 1, 7)]
    predicted = forecaster.predict(policy, results, ["a", "b"])
    assert predicted.makespan_s == pytest.approx(90.0)
    assert (predicted.requests, predicted.output_tokens) == (4, 142)
    assert predicted.prefilled_tokens % 9 == 0, "the mean prompt, whoever shares it"
    assert (predicted.chunks > 4) == POLICIES[policy].divided


def test_figures_compare_medians() -> None:
    measured = {"a": [10.0, 12.0, 50.0], "b": [20.0, 21.0, 19.0], "c": [22.0, 20.0, 23.0]}
    predicted = {"a": [12.0, 12.0, 12.0], "b": [22.0, 24.0, 21.0], "c": [21.0, 25.0, 20.0]}
    assert prediction_figures(measured, predicted) == {
        "prediction_error_max": pytest.approx(0.1),
        "same_order": 0,
        "order_pairs_agreeing": pytest.approx(2 / 3),
        "order_pairs_level": 3,
    }
    assert level_with("b", measured) == ["a", "c"]
    assert level_with("b", {name: seconds[:1] for name, seconds in measured.items()}) == []
