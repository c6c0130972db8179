"""LoRA's tensors on a machine that pins no memory."""

import sys
from types import SimpleNamespace

import pytest
import torch

from seer_sgl.engine.adapters import Pageable, use_pageable

MODULES = ["layers", "lora", "backend.torch_backend"]


def test_what_is_to_be_pinned_is_made_all_the_same() -> None:
    ours = Pageable()
    assert ours.tensor([1, 2], dtype=torch.int32, pin_memory=True).tolist() == [1, 2]
    assert ours.zeros(2, pin_memory=True).tolist() == [0.0, 0.0]
    assert ours.empty((2, 3), pin_memory=True).shape == (2, 3)
    assert ours.int32 is torch.int32


def test_the_modules_that_pin_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = torch.Tensor.pin_memory
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    fakes = {f"sglang.srt.lora.{name}": SimpleNamespace(torch=torch) for name in MODULES}
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    use_pageable("manager", rank=8)
    assert all(isinstance(fake.torch, Pageable) for fake in fakes.values())
    kept = torch.zeros(3)
    assert kept.pin_memory() is kept
