"""Where some programs look for `RouterArgs` and `launch_router`. `seer-sgl serve` starts servers."""

import sys

from .launch_router import launch_router
from .router_args import RouterArgs

__all__ = ["RouterArgs", "launch_router", "main"]


def main() -> None:
    """Refuse: the servers' arguments are SGLang's, and `seer-sgl serve` takes them."""
    print("error: seer-sgl starts servers by `seer-sgl serve --model PATH --engines N`", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
