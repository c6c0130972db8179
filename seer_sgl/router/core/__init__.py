"""The part that decides: events in, actions out. Nothing here has a clock, a socket or a log."""

from seer_sgl.router.core.machine import RouterCore
from seer_sgl.router.core.policy import POLICIES, Policy, policy_named

__all__ = ["POLICIES", "Policy", "RouterCore", "policy_named"]
