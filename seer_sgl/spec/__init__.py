"""Grouped speculation without SGLang or torch: the tree, the draft server, and how much to draft."""
