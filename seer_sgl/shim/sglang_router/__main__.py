"""`sglang-router launch ...`, and `python -m sglang_router launch ...`."""

import sys

from . import launch_router, launch_server
from .version import __version__

COMMANDS = {"launch": launch_router.main, "server": launch_server.main}


def main() -> None:
    """Run a command, with the arguments after its name."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--version", "-V"):
        print(f"sglang-router {__version__}")
        return
    if name not in COMMANDS:
        print("usage: sglang-router launch [arguments]", file=sys.stderr)
        sys.exit(0 if name in ("-h", "--help") else 1)
    del sys.argv[1]
    COMMANDS[name]()


if __name__ == "__main__":
    main()
