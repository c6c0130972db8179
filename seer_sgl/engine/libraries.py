"""The shared libraries that Mooncake's wheel expects from the system."""

import ctypes

MOONCAKE_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "libnuma.so.1": "libnuma1",
    "libcurl.so.4": "libcurl4",
}
"""Shared object -> Debian package. Found with `ldd` on every binary of the 0.3.13.post1 wheel."""


def missing_packages() -> list[str]:
    """Debian packages whose library this system lacks."""
    return [package for name, package in MOONCAKE_LIBRARIES.items() if not _loads(name)]


def missing_for_mooncake() -> str:
    """One line that says what is missing and how to get it, or nothing."""
    packages = " ".join(missing_packages())
    if not packages:
        return ""
    return f"Mooncake needs system libraries that are missing: apt-get install -y {packages}"


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
