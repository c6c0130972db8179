"""`seer-sgl doctor`: what is missing on this machine, and how to get it."""

import platform
import shutil
import sys
from importlib import metadata

import typer


def doctor() -> None:
    """Say what is missing on this machine; exit code 1 where something is."""
    checks = [_python(), _sglang(), *_mooncake(), _libraries(), _device(), _memory()]
    for good, what, remedy in checks:
        typer.echo(
            f"{'ok     ' if good else 'MISSING'} {what}" + ("" if good else f"\n        {remedy}")
        )
    raise typer.Exit(0 if all(good for good, _, _ in checks) else 1)


Check = tuple[bool, str, str]
"""Whether it is there, what it is, how to get it."""


def _python() -> Check:
    version = platform.python_version()
    return sys.version_info >= (3, 11), f"Python {version}", "install Python 3.11 or newer"


def _sglang() -> Check:
    from seer_sgl.config import TRIED_SGLANG
    from seer_sgl.engine.server import check_sglang_installed
    from seer_sgl.errors import StartError

    try:
        check_sglang_installed()
    except StartError as error:
        return False, "SGLang, for nodes with engines", str(error)
    return True, f"SGLang {TRIED_SGLANG[-1]}", ""


def _mooncake() -> list[Check]:
    names = ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine-cuda13")
    for name in names:
        try:
            return [(True, f"Mooncake {metadata.version(name)}", "")]
        except metadata.PackageNotFoundError:
            continue
    return [(False, "Mooncake, for nodes with engines", "pip install 'seer-sgl[cpu]' or [cuda]")]


def _libraries() -> Check:
    from seer_sgl.engine.libraries import MOONCAKE_LIBRARIES, missing_for_mooncake

    missing = missing_for_mooncake()
    return not missing, f"system libraries {', '.join(MOONCAKE_LIBRARIES)}", missing


def _device() -> Check:
    from seer_sgl.engine.node import runs_on_cpu

    kind = "no GPU: engines run on the CPU platform" if runs_on_cpu() else "a GPU"
    return True, f"device: {kind}", ""


def _memory() -> Check:
    free_gib = shutil.disk_usage("/tmp").free / 2**30
    return free_gib > 1, f"{free_gib:.0f} GiB free below /tmp", "free some disk space"
