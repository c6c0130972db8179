"""The doorway into SGLang: both entry points that SGLang calls in each of its processes.

`activate_platform` answers with our CPU platform only where no accelerator is present, so a CUDA
machine never sees it. `load` registers one hook that adds our own line to `/server_info`; SGLang logs
a plugin that fails and goes on without it, and that line is how a launcher proves that it did not.
"""

import os
from typing import Any

from seer_sgl.version import __version__

PROOF_KEY = "seer_sgl"
"""Where in `/server_info`'s `internal_states[i]` the proof stands."""

_INTERNAL_STATE = (
    "sglang.srt.managers.scheduler_components.internal_state"
    ".SchedulerInternalStateController.get_internal_state"
)


def _accelerator_present() -> bool:
    import torch

    if torch.cuda.is_available() or torch.xpu.is_available():
        return True
    npu = getattr(torch, "npu", None)
    return bool(npu is not None and npu.is_available()) or torch.backends.mps.is_available()


def activate_platform() -> str | None:
    """The dotted name of our platform class, or None where SGLang has one of its own.

    An explicit `SGLANG_USE_CPU_ENGINE=1` asks for SGLang's own CPU engine and is left alone.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1" or _accelerator_present():
        return None
    return "seer_sgl.engine.platform.SeerCpuPlatform"


def load() -> None:
    """Register our hooks. SGLang calls this once in each process, before it serves."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_INTERNAL_STATE, _add_proof, HookType.AFTER)


def _add_proof(output: Any, controller: Any, _request: Any) -> Any:
    """Add what only the running scheduler knows to its answer for `/server_info`."""
    from sglang.srt.platforms import current_platform

    config = controller.scheduler.model_config
    output.internal_state[PROOF_KEY] = {
        "version": __version__,
        "platform": type(current_platform).__name__,
        "device": current_platform.device_type,
        "vocab_size": int(config.vocab_size),
        "context_tokens": int(config.context_len),
    }
    return output
