"""The project's own small model: problems, tokenizer, training and figures.

The package file imports nothing heavy, so that ``problems`` stays usable without torch.
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The committed model, as a folder that servers load."""
