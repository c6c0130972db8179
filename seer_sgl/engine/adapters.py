"""SGLang's LoRA layers without CUDA: they ask for pinned memory, which a machine without it refuses.

Its backend of plain torch (`--lora-backend torch_native`) computes on any device otherwise.
"""

import importlib
from typing import Any

import torch

MANAGER = "sglang.srt.lora.lora_manager.LoRAManager.__init__"
_PINNING = (
    "sglang.srt.lora.layers",
    "sglang.srt.lora.lora",
    "sglang.srt.lora.backend.torch_backend",
)


class Pageable:
    """`torch` as those modules see it: what they want pinned is made as any other tensor."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(*args, **_unpinned(kwargs))

    def empty(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.empty(*args, **_unpinned(kwargs))

    def zeros(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*args, **_unpinned(kwargs))


def _unpinned(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "pin_memory"}


def use_pageable(*args: Any, **kwargs: Any) -> None:
    """Hook before the manager of adapters is made, which no server without LoRA makes."""
    del args, kwargs
    for name in _PINNING:
        importlib.import_module(name).torch = Pageable()  # type: ignore[attr-defined]
    torch.Tensor.pin_memory = _as_it_is


def _as_it_is(tensor: torch.Tensor, _device: Any = None) -> torch.Tensor:
    return tensor
