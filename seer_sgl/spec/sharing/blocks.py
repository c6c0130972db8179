"""Token sequences that grow side by side in one array: chains of blocks, for kernels to use.

A *chain* is a row of blocks. A block belongs to one chain or is free. Memory is the array's, whose size
is fixed; the system gives it pages as they are first written, and freed blocks are used again first.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seer_sgl.spec.compiled import kernel

IntArray = NDArray[np.int32]
LongArray = NDArray[np.int64]

BLOCK_WORDS = 512
BLOCK_BYTES = BLOCK_WORDS * 4 + 12
"""With the block's three links."""
NONE = -1

FREE, FRESH, LIMIT = 0, 1, 2
"""Where `Chains.state` has: freed blocks, blocks ever used, blocks that may be in use at once."""


class Chains(NamedTuple):
    """The arrays behind all chains."""

    words: IntArray
    after: IntArray
    """Next block of the chain, by block."""
    before: IntArray
    free: IntArray
    """A stack of freed blocks."""
    heads: IntArray
    """First block, by chain; NONE where it has no block."""
    tails: IntArray
    lengths: IntArray
    """Words, by chain. Blocks but the last are full."""
    state: IntArray

    @property
    def used_blocks(self) -> int:
        return int(self.state[FRESH] - self.state[FREE])


def new_chains(blocks: int, chains: int) -> Chains:
    """Nothing in use; room for so many blocks, in so many chains."""
    return Chains(
        words=np.empty(blocks * BLOCK_WORDS, np.int32),
        after=np.empty(blocks, np.int32),
        before=np.empty(blocks, np.int32),
        free=np.empty(blocks, np.int32),
        heads=np.full(chains, NONE, np.int32),
        tails=np.full(chains, NONE, np.int32),
        lengths=np.zeros(chains, np.int32),
        state=np.array([0, 0, blocks], np.int32),
    )


def with_more_chains(chains: Chains, count: int) -> Chains:
    """The same with room for `count` chains."""
    more = count - len(chains.heads)
    none = np.full(more, NONE, np.int32)
    return chains._replace(
        heads=np.concatenate((chains.heads, none)),
        tails=np.concatenate((chains.tails, none)),
        lengths=np.concatenate((chains.lengths, np.zeros(more, np.int32))),
    )


@kernel
def add_block(chains: Chains, chain: int) -> int:
    """Add a block to the chain's end and return it; NONE where no more may be in use."""
    state = chains.state
    if state[FRESH] - state[FREE] >= state[LIMIT]:
        return NONE
    if state[FREE]:
        state[FREE] -= 1
        block = chains.free[state[FREE]]
    elif state[FRESH] < len(chains.after):
        block = state[FRESH]
        state[FRESH] += 1
    else:
        return NONE
    tail = chains.tails[chain]
    chains.before[block] = tail
    chains.after[block] = NONE
    if tail == NONE:
        chains.heads[chain] = block
    else:
        chains.after[tail] = block
    chains.tails[chain] = block
    return int(block)


@kernel
def append_words(chains: Chains, chain: int, source: IntArray, start: int, end: int) -> int:
    """Append `source[start:end]`; how many fitted."""
    position = start
    while position < end:
        offset = chains.lengths[chain] % BLOCK_WORDS
        block = chains.tails[chain] if offset else add_block(chains, chain)
        if block == NONE:
            break
        count = min(BLOCK_WORDS - offset, end - position)
        at = block * BLOCK_WORDS + offset
        chains.words[at : at + count] = source[position : position + count]
        chains.lengths[chain] += count
        position += count
    return position - start


@kernel
def block_at(chains: Chains, chain: int, position: int) -> int:
    """The block that holds this word; reached from the end that is nearer."""
    wanted = position // BLOCK_WORDS
    last = (chains.lengths[chain] - 1) // BLOCK_WORDS
    if wanted <= last // 2:
        block = chains.heads[chain]
        for _ in range(wanted):
            block = chains.after[block]
        return int(block)
    block = chains.tails[chain]
    for _ in range(last - wanted):
        block = chains.before[block]
    return int(block)


@kernel
def copy_words(chains: Chains, chain: int, start: int, out: IntArray) -> None:
    """Fill `out` with the words from `start` on."""
    if not len(out):
        return
    block = block_at(chains, chain, start)
    offset = start % BLOCK_WORDS
    done = 0
    while done < len(out):
        count = min(BLOCK_WORDS - offset, len(out) - done)
        at = block * BLOCK_WORDS + offset
        out[done : done + count] = chains.words[at : at + count]
        done += count
        offset = 0
        block = chains.after[block]


@kernel
def clear_chain(chains: Chains, chain: int) -> None:
    """Free all its blocks."""
    block = chains.heads[chain]
    state = chains.state
    while block != NONE:
        chains.free[state[FREE]] = block
        state[FREE] += 1
        block = chains.after[block]
    chains.heads[chain] = NONE
    chains.tails[chain] = NONE
    chains.lengths[chain] = 0


def check_chains(chains: Chains) -> None:
    """Assert that every block is in one chain or free, and that lengths and links agree."""
    seen: list[int] = [int(block) for block in chains.free[: chains.state[FREE]]]
    for chain, head in enumerate(chains.heads.tolist()):
        blocks: list[int] = []
        block = head
        while block != NONE:
            assert chains.before[block] == (blocks[-1] if blocks else NONE)
            blocks.append(block)
            block = int(chains.after[block])
        assert chains.tails[chain] == (blocks[-1] if blocks else NONE)
        assert len(blocks) == -(-int(chains.lengths[chain]) // BLOCK_WORDS)
        seen += blocks
    assert sorted(seen) == list(range(chains.state[FRESH]))
