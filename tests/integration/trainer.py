"""A trainer as tests have it: serializes weights, and broadcasts them to all engines of a router."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import torch

from seer_sgl.engine.process import free_port
from tests.integration.weights import post

WORLD = 3
"""The trainer and two engines of one rank each."""
BUCKET = "flattened_bucket"
Weights = Mapping[str, torch.Tensor]
_shared: list[Any] = []
"""What was serialized: its memory goes when it goes."""


def serialized(weights: Weights, load_format: str | None = None) -> str:
    """As SGLang's trainers do it. The memory itself stays here."""
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

    # Memory by name: the other way passes a descriptor, which takes a key that servers do not have.
    torch.multiprocessing.set_sharing_strategy("file_system")
    content: Any = list(weights.items())
    if load_format == "flattened_bucket":
        bucket = FlattenedTensorBucket(named_tensors=content)
        content = {"flattened_tensor": bucket.get_flattened_tensor(), "metadata": bucket.get_metadata()}
    _shared.append(content)
    told: str = MultiprocessingSerializer.serialize(content, output_str=True)
    return told


class Trainer:
    """Rank 0 of a group with all engines. Use as a context manager."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        self._http = http
        self._name = name
        self._group: Any = None

    def __enter__(self) -> "Trainer":
        from sglang.srt.utils.common import init_custom_process_group

        port = free_port()
        group = {"group_name": self._name, "backend": "gloo"}
        place = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1}
        body = {**group, **place, "world_size": WORLD}
        with Meanwhile(lambda: post(self._http, "/init_weights_update_group", **body)):
            address = f"tcp://127.0.0.1:{port}"
            self._group = init_custom_process_group(
                init_method=address, world_size=WORLD, rank=0, **group
            )
        return self

    def __exit__(self, *_: object) -> None:
        post(self._http, "/destroy_weights_update_group", group_name=self._name)
        torch.distributed.destroy_process_group(self._group)

    def send(self, weights: Weights, load_format: str | None = None, **more: Any) -> None:
        from sglang.srt.weight_sync.tensor_bucket import FlattenedTensorBucket

        tensors = list(weights.values())
        body = {
            "names": list(weights),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in tensors],
            "shapes": [list(tensor.shape) for tensor in tensors],
            "group_name": self._name,
            "load_format": load_format,
            **more,
        }
        if load_format is not None:
            tensors = [FlattenedTensorBucket(list(weights.items())).get_flattened_tensor()]
        with Meanwhile(lambda: post(self._http, "/update_weights_from_distributed", **body)):
            for tensor in tensors:
                torch.distributed.broadcast(tensor.contiguous(), src=0, group=self._group)


class Meanwhile:
    """A call in a thread of its own, which ends inside the block; its error is raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.join(60)
        if self._error is not None:
            raise self._error
        assert kind or not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error
