"""The requests of one engine as paths of its forest, and what other engines tell of siblings."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from seer_sgl.spec.automaton import IntArray
from seer_sgl.spec.forest import Forest, GapError
from seer_sgl.spec.sharing.reading import Records

log = logging.getLogger(__name__)

PROMPT_TOKENS = 4096
"""Of a longer prompt, only the end becomes context."""


class Tag(NamedTuple):
    """Which sample of which group a request is, as the router says."""

    group: str
    request: int
    done: int
    """Tokens at the end of the prompt that earlier chunks generated."""
    probe: bool


class Live:
    """A request that runs here."""

    def __init__(self, tag: Tag, path: int, number: int, forced: int = -1) -> None:
        self.tag = tag
        self.path = path
        self.number = number
        """Its number for the draft client; -1 where there is none."""
        self.forced = forced
        """Draft tokens of each step that the request asks for; -1: the budget decides."""
        self.taken = 0
        """Tokens of this chunk's output that the tree has."""


def read_tag(tag: Any, rid: str, prompt_tokens: int) -> Tag:
    """What the router said, or a group of the request's own where it said nothing usable."""
    try:
        done = min(max(0, int(tag["done"])), prompt_tokens)
        return Tag(str(tag["group"]), int(tag["request"]), done, bool(tag.get("probe")))
    except (TypeError, KeyError, ValueError, AttributeError):
        return Tag(f"alone {rid}", 0, 0, False)


class Siblings:
    """Takes in what other engines generated: the draft client's sink."""

    def __init__(self, forest: Forest, vocab_size: int) -> None:
        self._forest = forest
        self._vocab_size = vocab_size
        self.taken_tokens = self.gaps = self.bad_tokens = 0

    def receive(self, records: Records) -> None:
        """Append each record to its sibling's path, what is new of it."""
        if len(records.tokens) and not self._are_tokens(records.tokens):
            self.bad_tokens += 1
            return
        for at, group in enumerate(records.group_of.tolist()):
            tokens = records.tokens[records.starts[at] : records.starts[at + 1]]
            request, prev = int(records.request_ids[at]), int(records.prev_counts[at])
            path = self._forest.open(records.group_ids[group], request, followed=False)
            try:
                self._forest.append(path, prev, tokens)
                self.taken_tokens += len(tokens)
            except GapError as error:
                self.gaps += 1
                if self.gaps == 1:
                    log.warning("request %s of group %s: %s", request, records.group_ids[group], error)

    def _are_tokens(self, tokens: IntArray) -> bool:
        fits = int(tokens.min()) >= 0 and (not self._vocab_size or int(tokens.max()) < self._vocab_size)
        if not fits and not self.bad_tokens:
            log.warning("sibling tokens outside the vocabulary of %d are left out", self._vocab_size)
        return fits


def as_tokens(tokens: Sequence[int] | IntArray) -> IntArray:
    """Token ids as an array."""
    return np.asarray(tokens, np.int32)
