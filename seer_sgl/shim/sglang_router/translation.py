"""The stock router's arguments as a head of ours. Pure, but for the number of a free port."""

import dataclasses
import logging
from pathlib import Path

from seer_sgl.config import RouterConfig
from seer_sgl.engine.process import free_port
from seer_sgl.errors import StartError
from seer_sgl.head import HeadConfig

from .router_args import Meaning, RouterArgs, Use

BY_LOAD = ("random", "round_robin", "power_of_two", "bucket")
"""Policies that look at no request; others keep together what shares a prefix or a key."""
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
LOG_DIR = Path.home() / ".local" / "state" / "seer-sgl"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to start, and what to say of it."""

    head: HeadConfig
    notes: list[str]


def planned(args: RouterArgs) -> Plan:
    """What these arguments come to.

    Raises:
        StartError: some of them ask for what would silently be missing.
    """
    refused = [f"{flag} ({meaning.text})" for flag, meaning in _changed(args, Use.REFUSED)]
    if refused:
        raise StartError(f"seer-sgl does not support {', '.join(refused)}")
    host = args.host.strip("[]")
    policy = our_policy(args.policy)
    router = RouterConfig(
        host=host,
        http_port=args.port,
        agent_port=free_port(),
        policy=policy,
        max_body_bytes=args.max_payload_size,
        prometheus_port=args.prometheus_port,
        prometheus_host=args.prometheus_host,
    )
    head = HeadConfig(
        router=router,
        engines=0,
        log_dir=LOG_DIR / str(args.port),
        pool=False,
        attach=tuple(args.worker_urls),
        attach_api_key=args.api_key or "",
    )
    notes = [f"policy {args.policy} of the stock router: {policy} of seer-sgl"]
    ignored = [flag for flag, _ in _changed(args, Use.IDLE)]
    if ignored:
        notes.append(f"accepted, but without meaning in seer-sgl: {', '.join(ignored)}")
    return Plan(head, notes)


def our_policy(name: str) -> str:
    """`least_loaded` for policies that go by load or turn, `seer` for those that go by what a
    request says: only that one looks at prefixes and groups."""
    return "least_loaded" if name in BY_LOAD else "seer"


def _changed(args: RouterArgs, use: Use) -> list[tuple[str, Meaning]]:
    """Arguments of that use that differ from their defaults."""
    found = []
    for each in dataclasses.fields(args):
        meaning: Meaning = each.metadata["meaning"]
        default = each.default
        if default is dataclasses.MISSING and each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        if meaning.use is use and getattr(args, each.name) not in (default, None):
            found.append((f"--{meaning.flag or each.name.replace('_', '-')}", meaning))
    return found
