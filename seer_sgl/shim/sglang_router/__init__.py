"""seer-sgl under the name of the stock SGLang router: same arguments, same HTTP, another router."""

from .version import __version__

__all__ = ["__version__"]
