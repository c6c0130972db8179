"""What becomes of a weight update that fails in the server."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from seer_sgl.engine.updates import _OUTPUTS, UNDEFINED, hook_of, register

TENSOR = "update_weights_from_tensor"
DISK = "update_weights_from_disk"
BEGIN, END = "begin_weight_update", "end_weight_update"


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


def stand_in(monkeypatch: pytest.MonkeyPatch, ranks: Any, stage: int = 0) -> None:
    """Torch and SGLang, of a process in some stage of a pipeline."""
    torch = SimpleNamespace(distributed=ranks, AcceleratorError=BrokenDeviceError)
    monkeypatch.setitem(sys.modules, "torch", torch)
    outputs = SimpleNamespace(**dict.fromkeys(_OUTPUTS.values(), Said))
    for module in ("sglang", "sglang.srt"):
        monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sglang.srt.managers", SimpleNamespace(io_struct=outputs))
    context = SimpleNamespace(get_parallel=lambda: SimpleNamespace(pp_rank=stage))
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)


def updated(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    result: Any,
    ranks: Ranks | None = None,
    stage: int = 0,
) -> Said:
    stand_in(monkeypatch, ranks or Ranks(), stage)

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


def test_undefined_weights_are_told_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    bad, worse = Said(success=False, message="cannot load"), f"{UNDEFINED}: rank 1"
    assert updated(monkeypatch, DISK, bad, Ranks("", worse)).message == worse


def test_a_later_stage_of_a_pipeline_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody hears its answer, and the first stage has said that all went well."""
    ranks = Ranks("")
    with pytest.raises(KeyError):
        updated(monkeypatch, TENSOR, KeyError("w"), ranks, stage=1)
    assert ranks.waited == 0
    good = Said(success=True, message="Success")
    assert updated(monkeypatch, TENSOR, good, ranks, stage=1) is good


class Group:
    """Ranks that wait for each other."""

    def __init__(self, ranks: int) -> None:
        self.told = [""] * ranks
        self._all = threading.Barrier(ranks, timeout=5.0)

    def wait(self) -> None:
        self._all.wait()


class Rank:
    """One rank of a group, and SGLang 0.5.23's manager on it: with a session of its own."""

    def __init__(self, group: Group, number: int) -> None:
        self.tp_cpu_group = self
        self.group, self.number = group, number
        self._session: object = None
        self.breaks = ""
        """Method that fails on it, once."""

    def _work(self, method: str) -> None:
        if self.breaks == method:
            self.breaks = ""
            raise RuntimeError(method)

    def begin_weight_update(self, _: Any) -> Said:
        if self._session is not None:
            return Said(success=False, message="already open")
        self._work(BEGIN)
        self._session = "open"
        self.group.wait()
        return Said(success=True, message="Success")

    def end_weight_update(self, _: Any) -> Said:
        if self._session is None:
            return Said(success=False, message="not open")
        self._work(END)
        self._session = None
        self.group.wait()
        return Said(success=True, message="Success")


class Between:
    """`torch.distributed` among such ranks. Ranks that do different things wait in vain."""

    def barrier(self, group: Rank) -> None:
        group.group.wait()

    def get_world_size(self, group: Rank) -> int:
        return len(group.group.told)

    def all_gather_object(self, told: list[str], own: str, group: Rank) -> None:
        group.group.told[group.number] = own
        group.group.wait()
        told[:] = group.group.told
        group.group.wait()


@pytest.mark.parametrize("breaks", [BEGIN, END])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_session_that_fails_on_one_rank_is_over_on_all(
    monkeypatch: pytest.MonkeyPatch, breaks: str, ranks: int
) -> None:
    stand_in(monkeypatch, Between())
    group = Group(ranks)
    managers = [Rank(group, number) for number in range(ranks)]
    with ThreadPoolExecutor(ranks) as pool:

        def said(method: str) -> str:
            original, hook = getattr(Rank, method), hook_of(method)
            answers = list(pool.map(lambda m: hook(original, m, "request"), managers))
            assert len({(each.success, each.message) for each in answers}) == 1
            return str(answers[0].message)

        if breaks == END:
            assert said(BEGIN) == "Success"
        managers[-1].breaks = breaks
        assert said(breaks).startswith(f"{UNDEFINED}: {breaks} failed: RuntimeError")
        assert said(END) == "not open"
        assert said(BEGIN) == "Success"
        assert said(BEGIN) == "already open"
        assert said(END) == "Success", "what SGLang refuses by itself changes nothing"


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
