"""The stock router's version whose interface this is; programs choose their requests by it."""

__version__ = "0.3.2+seer"
