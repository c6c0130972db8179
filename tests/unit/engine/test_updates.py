"""What becomes of a weight update that fails in the server."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from seer_sgl.engine.updates import UNDEFINED, hook_of, register

TENSOR = "update_weights_from_tensor"
DISK = "update_weights_from_disk"


class Said(SimpleNamespace):
    """Any of SGLang's outputs."""


class BrokenDeviceError(Exception):
    pass


class Ranks:
    """`torch.distributed` of one rank; the others have told these failures."""

    def __init__(self, *others: str) -> None:
        self.others = others
        self.waited = 0

    def barrier(self, group: Any) -> None:
        assert group == "cpu"
        self.waited += 1

    def get_world_size(self, group: Any) -> int:
        assert group == "cpu"
        return 1 + len(self.others)

    def all_gather_object(self, told: list[str], own: str, group: Any) -> None:
        assert group == "cpu"
        told[:] = [own, *self.others]


MANAGER = SimpleNamespace(tp_cpu_group="cpu")


def updated(
    monkeypatch: pytest.MonkeyPatch, method: str, result: Any, ranks: Ranks | None = None
) -> Said:
    torch = SimpleNamespace(distributed=ranks or Ranks(), AcceleratorError=BrokenDeviceError)
    monkeypatch.setitem(sys.modules, "torch", torch)
    names = ["UpdateWeightsFromTensorReqOutput", "UpdateWeightFromDiskReqOutput"]
    outputs = SimpleNamespace(**dict.fromkeys(names, Said))
    for module in ("sglang", "sglang.srt"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sglang.srt.managers", SimpleNamespace(io_struct=outputs))

    def original(manager: Any, request: Any) -> Any:
        assert (manager, request) == (MANAGER, "request")
        if isinstance(result, Exception):
            raise result
        return result

    said: Said = hook_of(method)(original, MANAGER, "request")
    return said


def test_what_goes_well_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Said(success=True, message="Success")
    assert updated(monkeypatch, TENSOR, good) is good
    assert updated(monkeypatch, TENSOR, good, Ranks("", "")) is good


def test_what_sglang_says_itself_stays_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Said(success=False, message="no session")
    assert updated(monkeypatch, TENSOR, bad) == bad


@pytest.mark.parametrize(("method", "waits"), [(TENSOR, 1), (DISK, 0)])
def test_an_exception_becomes_an_answer(
    monkeypatch: pytest.MonkeyPatch, method: str, waits: int
) -> None:
    ranks = Ranks()
    said = updated(monkeypatch, method, KeyError("w"), ranks)
    assert said.success is False
    assert said.message.startswith(f"{UNDEFINED}: {method} failed: KeyError 'w'; bring a whole set")
    assert ranks.waited == waits, "as often as the ranks that did not fail"


def test_a_failure_of_another_rank_is_one_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Said(success=True, message="Success")
    said = updated(monkeypatch, TENSOR, good, Ranks("", f"{UNDEFINED}: rank 2"))
    assert (said.success, said.message) == (False, f"{UNDEFINED}: rank 2")


def test_a_broken_device_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokenDeviceError):
        updated(monkeypatch, TENSOR, BrokenDeviceError("CUDA error: illegal memory access"))


def test_every_kind_of_update_is_guarded() -> None:
    found: list[tuple[str, Any]] = []
    registry = SimpleNamespace(register=lambda target, hook, kind: found.append((target, kind)))
    register(registry, "around")
    methods = {target.rpartition(".")[2] for target, _ in found}
    assert {kind for _, kind in found} == {"around"}
    assert {TENSOR, DISK, "update_weights_from_distributed", "begin_weight_update"} <= methods
