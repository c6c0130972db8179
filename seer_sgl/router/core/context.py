"""What a group's samples tell about its length (the Seer paper's Context Manager)."""

from seer_sgl.router.core.state import Group


def estimated_tokens(group: Group) -> int:
    """Output tokens to expect from the group's longest unfinished sample.

    The longest finished sibling, or `max_new_tokens` while none has finished (arXiv 2511.14617v3,
    Algorithm 2, UpdateEstimate). A running sibling that is longer still bounds it from below.
    """
    if not group.finished_tokens:
        return group.max_new_tokens
    return max(group.finished_tokens, group.longest_tokens)
