"""The namespace of KV that one client's requests share under one set of weights. Pure.

SGLang's cache keys know nothing of weights; they do know a `cache_salt`, on all levels from the device
to the pool. A salt that changes with the weights makes older KV unreachable, whatever failed to clear it
and however late it was written.
"""

import secrets
from hashlib import blake2b

_BYTES = 16


def new_life() -> str:
    """A name that no other router has, and no earlier run of this one: what they stored is not ours to
    find, as nobody here knows of which weights it is."""
    return secrets.token_hex(8)


def epoch_name(life: str, epoch: int) -> str:
    """One epoch of one router."""
    return f"{life}.{epoch}"


def chunk_salt(client_salt: str | None, name: str) -> str:
    """The `cache_salt` of a chunk.

    Args:
        client_salt: the client's own; None and the empty string are the same, as they are to SGLang.
        name: of the epoch that the chunk runs in.
    """
    digest = blake2b(digest_size=_BYTES, person=b"seer-sgl salt")
    epoch = name.encode()
    digest.update(len(epoch).to_bytes(4, "little") + epoch + (client_salt or "").encode())
    return digest.hexdigest()
