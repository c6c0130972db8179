"""The project's own small model: problems, tokenizer, training and figures.

The package file imports nothing, so that ``problems`` stays usable without torch.
"""
