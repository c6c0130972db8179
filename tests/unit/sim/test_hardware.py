"""An engine's times from its hardware: numbers worked out by hand, scaling, the paper's workloads."""

import pytest
from msgspec.structs import asdict, replace

from seer_sgl.sim.files import load_workload
from seer_sgl.sim.hardware import Hardware, ModelShape, engine_model
from seer_sgl.sim.model import EngineModel

SHAPE = ModelShape(
    weights_bytes=40e9,
    active_parameters=10e9,
    layers=50,
    kv_bytes_per_token=100e3,
    reductions_per_layer=2,
    reduced_bytes_per_token=1e6,
)
HARDWARE = Hardware(
    devices=2,
    memory_bytes=50e9,
    memory_share=0.8,
    memory_bytes_per_s=2e12,
    flop_per_s=500e12,
    link_bytes_per_s=100e9,
    migration_bytes_per_s=20e9,
    launch_s=10e-6,
    reduction_s=15e-6,
    efficiency=0.5,
    page_tokens=96,
    max_running_requests=100,
    turnaround_s=0.03,
    move_s=0.04,
)
STEP_TIMES = ("fixed_s", "weights_s", "token_s", "kv_token_s", "prefill_token_s")


def test_the_numbers_are_those_worked_out_by_hand() -> None:
    assert asdict(engine_model(SHAPE, HARDWARE)) == pytest.approx(
        {
            "fixed_s": 50 * (10e-6 + 2 * 15e-6) / 0.5,  # 4 ms
            "weights_s": 0.020,  # 40 GB at 2 * 2 TB/s, half of it reached
            "token_s": 60e-6,  # 20 GFLOP at 500 TFLOP/s: 40 us; 1 MB at 50 GB/s: 20 us
            "kv_token_s": 50e-9,  # 100 kB at 2 TB/s
            "prefill_token_s": 60e-6,
            "kv_capacity_tokens": 399_936,  # 2 * 50 GB * 0.8 - 40 GB: 400,000 tokens, 4,166 pages
            "page_tokens": 96,
            "max_running_requests": 100,
            "admission": "eager",
            "prefill_s": 0.0,
            "prefix_token_s": 0.0,
            "turnaround_s": 0.03,
            "move_s": 0.04,
            "move_token_s": 5e-6,  # 100 kB at 20 GB/s
        }
    )


def test_twice_the_devices_read_and_compute_twice_as_fast() -> None:
    shape = replace(SHAPE, reduced_bytes_per_token=0.0)
    one, two = (engine_model(shape, replace(HARDWARE, devices=devices)) for devices in (2, 4))
    for name in ("weights_s", "kv_token_s", "token_s", "prefill_token_s"):
        assert getattr(two, name) == pytest.approx(getattr(one, name) / 2), name
    assert two.fixed_s == one.fixed_s, "each device launches for itself"
    assert two.kv_capacity_tokens > 2 * one.kv_capacity_tokens, "the weights are there once only"


def test_half_the_efficiency_doubles_every_time_of_a_step() -> None:
    good, bad = (engine_model(SHAPE, replace(HARDWARE, efficiency=part)) for part in (0.8, 0.4))
    for name in STEP_TIMES:
        assert getattr(bad, name) == pytest.approx(2 * getattr(good, name)), name
    for requests, kv_tokens in ((1, 0), (64, 200_000), (1000, 300_000)):
        assert bad.step_s(requests, kv_tokens) == pytest.approx(2 * good.step_s(requests, kv_tokens))
    for name in set(EngineModel.__struct_fields__) - set(STEP_TIMES):
        assert getattr(bad, name) == getattr(good, name), name


def test_the_capacity_is_in_whole_pages() -> None:
    for page_tokens in (1, 16, 4096):
        model = engine_model(SHAPE, replace(HARDWARE, page_tokens=page_tokens))
        assert model.kv_capacity_tokens % page_tokens == 0
        assert 0 <= 400_000 - model.kv_capacity_tokens < page_tokens


def test_a_step_waits_for_the_weights_or_for_the_arithmetic() -> None:
    model = engine_model(SHAPE, HARDWARE)
    assert model.step_s(1, 0) == model.step_s(300, 0) == pytest.approx(0.024)
    assert model.step_s(1000, 0) == model.step_s(250, 0, 4.0) == pytest.approx(0.064)
    assert model.step_s(1, 1_000_000) == pytest.approx(0.074)


@pytest.mark.parametrize(
    ("name", "requests", "group_size", "max_new_tokens", "mean_tokens", "gpus"),
    [
        ("moonlight", 3200, 8, 65536, 22386, 32),
        ("qwen2-vl-72b", 9600, 16, 40960, 7615, 128),
        ("kimi-k2", 6400, 8, 98304, 38959, 256),
    ],
)
def test_the_built_in_workloads_are_those_of_the_papers_table_3(
    name: str, requests: int, group_size: int, max_new_tokens: int, mean_tokens: int, gpus: int
) -> None:
    workload = load_workload(name)
    assert workload.name == name
    assert workload.groups * workload.group_size == requests
    assert workload.group_size == group_size
    assert workload.max_new_tokens == max_new_tokens
    assert workload.lengths.mean_tokens == mean_tokens
    assert gpus % workload.engines == 0
    longest = workload.prompt_tokens + max_new_tokens
    assert workload.engine.kv_capacity_tokens > longest, "the longest sample fits alone"
    assert workload.engine.kv_capacity_tokens < longest * 100, "and a crowd of them does not"
