"""An SGLang platform for machines without a GPU: plain torch kernels, gloo, pageable host memory.

Written against SGLang 0.5.23 (`sglang/srt/platforms/interface.py`). SGLang's own CPU engine needs
`sgl_kernel`, which does not import without a CUDA driver; this platform needs torch alone.
"""

from typing import Any

import psutil
import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform


class SeerCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    """torch-native attention, no Triton, no graph capture."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_device(self, device_id: int = 0) -> torch.device:
        return torch.device("cpu")

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        if kind != "mha":
            return None
        from seer_sgl.engine.kvpool import CpuKVPool

        return CpuKVPool

    def get_torch_profiler_activity_str(self) -> str:
        # SGLang asks for it whenever a profile starts, and ends where there is no answer.
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        return torch.profiler.ProfilerActivity.CPU

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm == "SEER"

    def init_backend(self) -> None:
        from seer_sgl.engine import hicache

        hicache.install()
