"""The doorway into SGLang: both entry points that SGLang calls in each of its processes.

`activate_platform` answers with our CPU platform only where no accelerator is present, so a CUDA
machine never sees it. `load` registers the speculative algorithm, the front that has the router generate
what comes through it, hooks that keep a failed weight update from ending the server, on our CPU platform
also attention and sampling, and one hook that adds our own line to `/server_info`; SGLang logs a plugin
that fails and goes on without it, and that line is how a launcher proves that it did not.
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
_ASSIGN_SLOTS = "sglang.srt.mem_cache.allocation.assign_req_to_token_pool_func"
_SAMPLING_INFO = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
_LINEAR = "sglang.srt.layers.quantization.unquant.UnquantizedLinearMethod.apply"
_SAMPLER = "sglang.srt.layers.sampler"


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

    from seer_sgl.engine import front, speculative, updates

    HookRegistry.register(_INTERNAL_STATE, _add_proof, HookType.AFTER)
    HookRegistry.register(front.TARGET, front.generate_request, HookType.AROUND)
    updates.register(HookRegistry, HookType.AROUND)
    speculative.register()
    if activate_platform() is not None:
        _load_on_cpu()


def _load_on_cpu() -> None:
    """What replaces Triton and `sgl_kernel` on our CPU platform."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from seer_sgl.engine import adapters, kvpool, linear, sampling

    # SGLang tests for this very name to stay off Triton, so ours takes it over.
    register_attention_backend("torch_native")(_cpu_attention)
    HookRegistry.register(_ASSIGN_SLOTS, kvpool.assign_slots, HookType.REPLACE)
    HookRegistry.register(adapters.MANAGER, adapters.use_pageable, HookType.BEFORE)
    HookRegistry.register(_LINEAR, linear.apply_linear, HookType.AROUND)
    HookRegistry.register(_SAMPLING_INFO, sampling.note_seeds, HookType.AFTER)
    HookRegistry.register(
        f"{_SAMPLER}.sampling_from_probs_torch", sampling.sample_probs, HookType.AROUND
    )
    filtered = f"{_SAMPLER}.top_k_top_p_min_p_sampling_from_probs_torch"
    HookRegistry.register(filtered, sampling.sample_filtered, HookType.AROUND)


def _cpu_attention(runner: Any) -> Any:
    from seer_sgl.engine.attention import CpuAttention

    return CpuAttention(runner)


def _add_proof(output: Any, controller: Any, _request: Any) -> Any:
    """Add what only the running scheduler knows to its answer for `/server_info`."""
    from sglang.srt.platforms import current_platform

    from seer_sgl.engine.kvlayout import pool_layout

    config = controller.scheduler.model_config
    output.internal_state[PROOF_KEY] = {
        "version": __version__,
        "platform": type(current_platform).__name__,
        "device": current_platform.device_type,
        "vocab_size": int(config.vocab_size),
        "context_tokens": int(config.context_len),
        "speculation": _speculation(controller.scheduler),
        "front": _front_is_active(controller.scheduler.server_args),
        "pool_layout": pool_layout(controller.scheduler),
    }
    return output


def _front_is_active(server_args: Any) -> bool:
    """Whether this server has the router generate what comes through it.

    Hooks are the same in all processes, but SGLang loads no plugin where it starts several of HTTP.
    """
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    hooked = hasattr(TokenizerManager.generate_request, "__wrapped__")
    return hooked and int(server_args.tokenizer_worker_num) == 1


def _speculation(scheduler: Any) -> dict[str, Any] | None:
    """What our worker counted; None where another or no algorithm runs."""
    drafting = getattr(scheduler.draft_worker, "drafting", None)
    return None if drafting is None else drafting.counters()
