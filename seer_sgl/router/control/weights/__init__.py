"""Changes of weights on all engines, and who may serve after them. See docs/weights.md."""
