"""`seer-sgl doctor`: what is missing on this machine, and how to get it."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Annotated

import typer


def doctor(
    install: Annotated[
        bool, typer.Option("--install", help="Install missing system packages with apt-get, as root.")
    ] = False,
) -> None:
    """Say what is missing on this machine; exit code 1 where something is."""
    from seer_sgl.engine.libraries import missing_build_tools, missing_libraries

    if install and (missing := [*missing_libraries(), *missing_build_tools()]):
        _install(missing)
    checks = [_python(), _sglang(), *_mooncake(), _libraries(), _build_tools(), _device(), _disk()]
    for good, what, remedy in checks:
        typer.echo(f"ok      {what}" if good else f"MISSING {what}\n        {remedy}")
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
    from seer_sgl.engine.libraries import MOONCAKE_LIBRARIES, missing_libraries

    return _packages_check(missing_libraries(), f"system libraries {', '.join(MOONCAKE_LIBRARIES)}")


def _build_tools() -> Check:
    from seer_sgl.engine.libraries import missing_build_tools

    return _packages_check(missing_build_tools(), "C++ compiler, headers of OpenSSL and Python")


def _packages_check(missing: list[str], what: str) -> Check:
    return not missing, what, _shown(_steps(missing)) if missing else ""


def _device() -> Check:
    from seer_sgl.engine.node import runs_on_cpu

    kind = "no GPU: engines run on the CPU platform" if runs_on_cpu() else "a GPU"
    return True, f"device: {kind}", ""


def _disk() -> Check:
    free_gib = shutil.disk_usage("/tmp").free / 2**30
    return free_gib > 1, f"{free_gib:.0f} GiB free below /tmp", "free some disk space"


def _steps(packages: list[str]) -> list[list[str]]:
    return [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]]


def _shown(steps: list[list[str]], prefix: str = "") -> str:
    return " && ".join(prefix + shlex.join(step) for step in steps)


def _install(packages: list[str]) -> None:
    """Install Debian packages; or, where that is not ours to do, print how and stop."""
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        typer.echo(f"missing: {names}; these are Debian's names, and there is no apt-get here", err=True)
        raise typer.Exit(1)
    if os.geteuid() != 0:
        typer.echo(f"missing: {names}. Run:\n    {_shown(_steps(packages), 'sudo ')}", err=True)
        raise typer.Exit(1)
    typer.echo(f"installing {names}")
    for step in _steps(packages):
        ran = subprocess.run(step, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
        if ran.returncode:
            typer.echo(f"{shlex.join(step)} failed with status {ran.returncode}", err=True)
            raise typer.Exit(1)
