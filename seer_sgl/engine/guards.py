"""Calls that would end SGLang's server, or a part of it: refused before they reach it. Pure."""

from typing import Any


def objection(method: str, target: str, body: bytes, facts: dict[str, Any]) -> str:
    """Why this call may not be made, with the flag that would allow it; empty where it may.

    Args:
        facts: scalar arguments of the server, as `/server_info` tells them.
    """
    path = target.partition("?")[0]
    if not path.startswith("/"):
        return f"{target!r} is no path"
    needs_saver = path in ("/release_memory_occupation", "/resume_memory_occupation")
    if needs_saver and not facts.get("enable_memory_saver"):
        return f"{path}: the engine runs without --enable-memory-saver"
    return ""
