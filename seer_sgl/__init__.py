"""seer-sgl: a rollout engine for GRPO-like RL on SGLang servers."""

from seer_sgl.version import __version__

__all__ = ["__version__"]
