"""What an engine's answer to a change of weights says of the weights that it has now. Pure.

SGLang 0.5.23 answers 400 both where it has refused a change and where it gave up in the middle of one;
its own way back loads the new weights again. So what it says decides: only after what is known to come
before any weight is touched does an engine have the weights that it had. After everything else it may
have a mixture.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any

from seer_sgl.router.control.merging import Reply
from seer_sgl.router.control.views import ranks


class Outcome(Enum):
    """What became of an engine's weights."""

    TOOK = "it has the new weights"
    UNTOUCHED = "it has the weights that it had"
    DOUBTFUL = "it may have a mixture"


NOT_BEGUN = "not begun, as "
"""How the router's own answer begins for an engine that was spared, as another one could not start."""

_NOT_TRIED = (401, 403, 404, 405, 413)
"""SGLang's front answers these itself: no route, no key, too large."""
_BEFORE = (
    NOT_BEGUN,
    "update_weights_from_distributed must run between",
    "update_weights_from_tensor must run between",
    "a weight-update session is already open",
    "no weight-update session is open",
    "Failed to receive weights: Group ",
    "LoRA is not enabled",
)
"""Every rank of an engine says these, or none does."""
_BEFORE_ON_ONE_NODE = (
    "Online weight updates are not supported",
    "Failed to get model loader",
    "Failed to get weights iterator",
    "IPC weight update failed: ImportError",
)
"""Ranks that see other files or libraries may load meanwhile."""
_BEFORE_ON_ONE_RANK = ("Failed to receive weights",)
"""One rank alone may say this while others have received all and load."""
_ONE_MODEL = (None, "", "SEER")
"""Values of --speculative-algorithm without a draft model of its own; what that says comes after the
target's weights have changed."""


def outcome(path: str, reply: Reply, facts: Mapping[str, Any]) -> Outcome:
    """What a change has done to an engine.

    Args:
        path: of the call, as `/update_weights_from_disk`.
        facts: the engine's arguments.
    """
    if reply.good:
        return Outcome.TOOK
    if reply.status in _NOT_TRIED or _refused_at_the_door(path, reply):
        return Outcome.UNTOUCHED
    if reply.status != 400:
        return Outcome.DOUBTFUL
    known: tuple[str, ...] = _BEFORE
    if facts.get("speculative_algorithm") in _ONE_MODEL:
        known += _BEFORE_ON_ONE_NODE if facts.get("nnodes", 1) == 1 else ()
        known += _BEFORE_ON_ONE_RANK if ranks(facts) == 1 else ()
    parts = reply.said().split(" | ")  # of data-parallel replicas
    return Outcome.UNTOUCHED if all(part.startswith(known) for part in parts) else Outcome.DOUBTFUL


def adapter_outcome(path: str, reply: Reply, facts: Mapping[str, Any]) -> Outcome:
    """The same for an adapter: what could not be loaded is not there."""
    found = outcome(path, reply, facts)
    refused = found is Outcome.DOUBTFUL and reply.status == 400
    return Outcome.UNTOUCHED if refused else found


def _refused_at_the_door(path: str, reply: Reply) -> bool:
    """By an agent's guards, which name the path; or by SGLang's front, as the body is wrong."""
    if reply.status not in (400, 422):
        return False
    body = reply.json()
    if not isinstance(body, dict) or "success" in body:
        return False
    return body.get("object") == "error" or reply.said().startswith(f"{path}: ")
