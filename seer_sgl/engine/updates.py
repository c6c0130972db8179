"""Weight updates that fail in the server, and do not end it.

SGLang 0.5.23 loads weights in its scheduler's own loop; what goes wrong there beyond what it foresees
(memory of a trainer that has gone, a tensor of another shape, a roll-back that fails like the update)
takes the server down, and the requests of everybody with it. Here it becomes an answer, where there is
somebody to hear it: the first stage of a pipeline answers before the next one has begun.
"""

import logging
from collections.abc import Callable
from typing import Any

UNDEFINED = "weights are undefined"
"""How the message begins where part of the weights may have been replaced."""
_MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_OUTPUTS = {
    "update_weights_from_tensor": "UpdateWeightsFromTensorReqOutput",
    "update_weights_from_disk": "UpdateWeightFromDiskReqOutput",
    "update_weights_from_distributed": "UpdateWeightsFromDistributedReqOutput",
    "update_weights_from_ipc": "UpdateWeightsFromIPCReqOutput",
    "begin_weight_update": "BeginWeightUpdateReqOutput",
    "end_weight_update": "EndWeightUpdateReqOutput",
}
_WITH_BARRIER = (
    "update_weights_from_tensor update_weights_from_ipc begin_weight_update end_weight_update"
).split()
"""Where SGLang's ranks wait for each other at the end: one that failed has to be waited for, too."""

_SESSION = ("begin_weight_update", "end_weight_update")
"""They open and close a session, which SGLang keeps on every rank by itself."""

Update = Callable[[Any, Any], Any]
log = logging.getLogger(__name__)


def register(registry: Any, around: Any) -> None:
    """Put a hook around each kind of update."""
    for method in _OUTPUTS:
        registry.register(f"{_MANAGER}.{method}", hook_of(method), around)


def hook_of(method: str) -> Callable[[Update, Any, Any], Any]:
    """The hook around one of the manager's methods."""

    def guarded(original: Update, manager: Any, request: Any) -> Any:
        output, failure = None, ""
        try:
            output = original(manager, request)
            if not output.success:
                failure = output.message
        except Exception as error:
            if _broke_the_device(error) or _is_later_stage():
                raise
            log.exception("%s failed", method)
            failure = _told(method, error)
            if method in _WITH_BARRIER:
                _barrier(manager)
        failure = _first_failure(manager, failure)
        if method in _SESSION and failure.startswith(UNDEFINED):
            # Open on some ranks and not on others, the next call would have some wait for the others for
            # ever. None is open now: whoever brings whole weights begins anew.
            manager._session = None
        return _refusal(method, failure) if failure else output

    return guarded


def _told(method: str, error: Exception) -> str:
    said = f"{type(error).__name__} {error}".strip()
    return (
        f"{UNDEFINED}: {method} failed: {said}; bring a whole set of weights with "
        "/update_weights_from_disk, or start the engine again"
    )


def _refusal(method: str, message: str) -> Any:
    from sglang.srt.managers import io_struct

    return getattr(io_struct, _OUTPUTS[method])(success=False, message=message)


def _broke_the_device(error: Exception) -> bool:
    """After an error of CUDA itself nothing works in this process any more: let it end."""
    import torch

    return isinstance(error, getattr(torch, "AcceleratorError", ()))


def _is_later_stage() -> bool:
    """Whether nobody would hear the answer: success was told, and this stage has other weights than that
    one. A server that ends is started again, with whole weights."""
    from sglang.srt.runtime_context import get_parallel

    return int(get_parallel().pp_rank) > 0


def _barrier(manager: Any) -> None:
    import torch

    torch.distributed.barrier(group=manager.tp_cpu_group)


def _first_failure(manager: Any, failure: str) -> str:
    """What any of the ranks says went wrong, the worst of it: only the first one's answer is heard."""
    import torch

    group = manager.tp_cpu_group
    ranks = torch.distributed.get_world_size(group=group)
    if ranks == 1:
        return failure
    told: list[str] = [""] * ranks
    torch.distributed.all_gather_object(told, failure, group=group)
    return max(told, key=lambda said: (said.startswith(UNDEFINED), bool(said)))
