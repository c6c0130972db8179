"""An engine's speed from first principles: what a step has to read and to compute, on which devices."""

import msgspec

from seer_sgl.sim.model import EngineModel


class ModelShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as its engine sees it."""

    weights_bytes: float
    active_parameters: float
    """Parameters that one token goes through."""
    layers: int
    kv_bytes_per_token: float
    """Over all layers."""
    reductions_per_layer: int = 0
    """Collective calls per layer."""
    reduced_bytes_per_token: float = 0.0
    """What one token sends over each device's link per step, over all layers."""


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine's devices."""

    devices: int
    memory_bytes: float
    """Of one device."""
    memory_share: float
    """What an engine may use of it for weights and KV, 0 to 1."""
    memory_bytes_per_s: float
    flop_per_s: float
    link_bytes_per_s: float
    """Of one device to the others of its engine."""
    migration_bytes_per_s: float
    """Of the engine to the pool and to other engines."""
    launch_s: float
    """Host and launch time per layer and step."""
    reduction_s: float
    """Latency of one collective call."""
    efficiency: float
    """What is reached of the peaks above, 0 to 1: the constant that is fitted."""
    page_tokens: int = 16
    max_running_requests: int = 1024
    turnaround_s: float = 0.02
    """Router, network and scheduling between two chunks of a request."""
    move_s: float = 0.01


def engine_model(shape: ModelShape, hardware: Hardware) -> EngineModel:
    """The times of a step and the room for KV that follow from the two."""
    devices, reached = hardware.devices, hardware.efficiency
    memory_bytes_per_s = devices * hardware.memory_bytes_per_s * reached
    compute_s = 2.0 * shape.active_parameters / (devices * hardware.flop_per_s * reached)
    link_s = shape.reduced_bytes_per_token / (hardware.link_bytes_per_s * reached)
    calls_s = shape.reductions_per_layer * hardware.reduction_s
    room_bytes = devices * hardware.memory_bytes * hardware.memory_share - shape.weights_bytes
    page = hardware.page_tokens
    return EngineModel(
        fixed_s=shape.layers * (hardware.launch_s + calls_s) / reached,
        weights_s=shape.weights_bytes / memory_bytes_per_s,
        token_s=compute_s + link_s,
        kv_token_s=shape.kv_bytes_per_token / memory_bytes_per_s,
        prefill_token_s=compute_s + link_s,
        kv_capacity_tokens=int(room_bytes / shape.kv_bytes_per_token) // page * page,
        page_tokens=page,
        max_running_requests=hardware.max_running_requests,
        turnaround_s=hardware.turnaround_s,
        move_s=hardware.move_s,
        move_token_s=shape.kv_bytes_per_token / hardware.migration_bytes_per_s,
    )
