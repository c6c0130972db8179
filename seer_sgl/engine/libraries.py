"""What SGLang and Mooncake need from the system besides Python packages."""

import ctypes
import os
import shutil
import sys
import sysconfig
from pathlib import Path

MOONCAKE_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "libnuma.so.1": "libnuma1",
    "libcurl.so.4": "libcurl4",
}
"""Shared object -> Debian package. Found with `ldd` on every binary of the 0.3.13.post1 wheel."""

OPENSSL_HEADER = Path("/usr/include/openssl/sha.h")


def missing_libraries() -> list[str]:
    """Debian packages whose library Mooncake would not find."""
    return [package for name, package in MOONCAKE_LIBRARIES.items() if not _loads(name)]


def missing_build_tools() -> list[str]:
    """Debian packages that are missing to compile HiCache's page hash, as SGLang does on first use."""
    major, minor = sys.version_info[:2]
    present = {
        "g++": shutil.which(os.environ.get("CXX", "c++")) is not None,
        "libssl-dev": OPENSSL_HEADER.exists(),
        f"python{major}.{minor}-dev": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    return [package for package, there in present.items() if not there]


def missing_for_pool() -> str:
    """One line that says what engines with a pool lack and how to get it, or nothing."""
    packages = " ".join([*missing_libraries(), *missing_build_tools()])
    if not packages:
        return ""
    return f"the KV pool needs system packages that are missing: apt-get install -y {packages}"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
