"""What goes to SGLang's `/generate` for one chunk of a sample. Pure."""

from dataclasses import dataclass
from typing import Any

import msgspec

from seer_sgl.kv.salts import chunk_salt
from seer_sgl.router.core.actions import Dispatch
from seer_sgl.router.live import Live
from seer_sgl.router.sampling import chunk_sampling
from seer_sgl.router.transcript import routed_start


@dataclass(frozen=True, slots=True)
class Epoch:
    """The weights under which chunks run."""

    number: int
    """Weight changes since the router started."""
    name: str | None
    """Part of every chunk's salt; None leaves the client's salt alone."""

    def group(self, group_id: str) -> str:
        """A group as drafts know it: what siblings said under other weights is another group's."""
        return f"{group_id}.e{self.number}" if self.number else group_id

    def salt(self, own: str | None) -> str | None:
        """The salt of a request's chunks.

        Args:
            own: the client's.
        """
        return own if self.name is None else chunk_salt(own, self.name)

    def salted(self, body: bytes) -> bytes:
        """A request of OpenAI's API that an engine generates by itself; a wrong body stays so."""
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            own = msgspec.json.decode(fields.get("cache_salt", b"null"), type=str | list[str] | None)
        except msgspec.MsgspecError:
            return body
        salts = [self.salt(each) for each in own] if isinstance(own, list) else self.salt(own)
        if salts is None:
            return body
        fields["cache_salt"] = msgspec.Raw(msgspec.json.encode(salts))
        return msgspec.json.encode(fields)


def chunk_body(live: Live, dispatch: Dispatch, epoch: Epoch, is_probe: bool) -> dict[str, Any]:
    """The body of the chunk that goes on from what the sample has."""
    sample, held_ids = live.sample, live.transcript.held_ids
    done = live.transcript.ended_tokens
    tag = {
        "group": epoch.group(live.group_id),
        "request": live.number,
        "done": done,
        "probe": is_probe,
    }
    most = dispatch.max_new_tokens if sample.max_new_tokens != 0 else 0
    body = {
        **sample.body,
        "rid": f"{sample.rid}.{dispatch.chunk_id}",
        "sampling_params": chunk_sampling(sample.sampling, most, done, tag),
    }
    if (salt := epoch.salt(sample.body.get("cache_salt"))) is not None:
        body["cache_salt"] = salt
    if sample.text is None or sample.divisible:
        body["input_ids"] = held_ids
    else:
        body["text"] = sample.text  # images and the like stand in it
    if body.get("return_routed_experts"):
        wanted = body.get("routed_experts_start_len")
        body["routed_experts_start_len"] = routed_start(wanted, len(held_ids), len(held_ids) - done)
    return body
