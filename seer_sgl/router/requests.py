"""`POST /generate` bodies taken apart into single samples. Pure: a body in, samples or an error out.

The body stays SGLang's: each sample keeps every field that it came with, unknown ones too. Only `text`,
`input_ids`, `rid`, `n`, `max_new_tokens` and our own `group_id` are taken out, to be set per chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from seer_sgl.errors import RequestError
from seer_sgl.router.sampling import check_sampling, divisible_sampling
from seer_sgl.types import EngineSpec

MAX_SAMPLES = 65_536
"""Samples of one call; more is a slip, and would hold the event loop."""

_PER_ITEM = frozenset(
    """rid sampling_params return_logprob logprob_start_len top_logprobs_num token_ids_logprob
    return_sampling_mask return_hidden_states lora_path lora_id image_data video_data audio_data
    custom_logit_processor bootstrap_host bootstrap_port bootstrap_room bootstrap_pair_key
    decode_tp_size extra_key cache_salt group_id""".split()
)
"""Fields that a batch may give as one list entry per prompt (SGLang 0.5.23 `GenerateReqInput`)."""

_DIVISIBLE = frozenset(
    """sampling_params return_logprob top_logprobs_num token_ids_logprob return_text_in_logprobs
    log_metrics lora_path lora_id extra_key cache_salt priority no_logs custom_labels
    routing_key return_routed_experts routed_experts_start_len return_prompt_token_ids""".split()
)
"""Fields that mean the same in every chunk. With any other one a request runs whole: state that
SGLang keeps per request is never lost in silence."""


@dataclass(slots=True)
class Sample:
    """One sample to generate."""

    rid: str
    body: dict[str, Any]
    """What goes to SGLang with every chunk, less the fields that a chunk sets."""
    max_new_tokens: int | None
    group_id: str | None
    """As the client names it; None where it is to be recognised (see `grouping.py`)."""
    divisible: bool
    text: str | None = None
    prompt_ids: list[int] = field(default_factory=list)
    background: bool = False
    """Requests that somebody waits for go first."""
    names: tuple[str, ...] = ()
    """Ids of the requests that it was made of, as `n` and lists make many of one."""

    @property
    def sampling(self) -> dict[str, Any]:
        params: dict[str, Any] = self.body["sampling_params"]
        return params


@dataclass(slots=True)
class GenerateCall:
    """One HTTP call: its samples, prompt by prompt, and whether the answer is a list."""

    samples: list[Sample]
    is_list: bool
    streams: bool = False

    def in_background(self) -> None:
        """Let requests that somebody waits for go first."""
        for sample in self.samples:
            sample.background = True


def parse_generate(body: Any, new_rid: str, group_id: str | None = None) -> GenerateCall:
    """Take a `/generate` body apart.

    Args:
        body: the decoded JSON.
        new_rid: id for a request that brings none.
        group_id: group of all its samples, if a header names it.

    Raises:
        RequestError: naming the field, its value and what is allowed.
    """
    if not isinstance(body, dict):
        raise RequestError("", f"the body must be a JSON object, got {type(body).__name__}")
    streams = body.get("stream")
    if streams is not None and not isinstance(streams, bool):
        raise RequestError("stream", f"must be true or false, got {streams!r}")
    prompts, batched = _prompts(body)
    samples: list[Sample] = []
    many, given_rid = batched, body.get("rid")
    top_rid = None if isinstance(given_rid, list) else given_rid or new_rid
    for index, prompt in enumerate(prompts):
        item = _item(body, index, len(prompts)) if batched else dict(body)
        params = _checked_sampling(item)
        count = _count_of(params)
        many = many or count > 1
        if len(samples) + count > MAX_SAMPLES:
            raise RequestError("n", f"one call may ask for at most {MAX_SAMPLES} samples")
        rid = item.get("rid")
        if rid is None or rid == "":
            rid = f"{new_rid}_{index}" if batched else new_rid
        samples += _samples(item, prompt, params, (rid, top_rid), group_id)
    taken: set[str] = set()
    for sample in samples:
        if sample.rid in taken:
            raise RequestError("rid", f"{sample.rid!r} is given twice; ids must differ")
        taken.add(sample.rid)
    return GenerateCall(samples, many, bool(streams))


def _prompts(body: dict[str, Any]) -> tuple[list[Any], bool]:
    text, ids = body.get("text"), body.get("input_ids")
    if text is not None and ids is not None:
        raise RequestError("input_ids", "give either `text` or `input_ids`, not both")
    if text is None and ids is None:
        raise RequestError("input_ids", "a prompt is missing: give `text` or `input_ids`")
    if isinstance(text, str):
        return [text], False
    if text is not None:
        if not isinstance(text, list) or not text or not all(isinstance(t, str) for t in text):
            raise RequestError("text", "must be a string or a non-empty list of strings")
        return text, True
    if not isinstance(ids, list):
        raise RequestError("input_ids", f"must be a list of token ids, got {type(ids).__name__}")
    if ids and all(isinstance(row, list) for row in ids):
        return ids, True
    return [ids], False


def _item(body: dict[str, Any], index: int, total: int) -> dict[str, Any]:
    """The fields of one prompt of a batch."""
    item = dict(body)
    for key in _PER_ITEM & body.keys():
        value = body[key]
        if not isinstance(value, list):
            if key == "rid" and isinstance(value, str):
                item[key] = f"{value}_{index}"
        elif key != "token_ids_logprob" or not value or isinstance(value[0], list):
            if len(value) != total:
                raise RequestError(key, f"has {len(value)} entries for {total} prompts")
            item[key] = value[index]
    return item


def _checked_sampling(item: dict[str, Any]) -> dict[str, Any]:
    params = item.get("sampling_params")
    if params is None:
        return {}
    if not isinstance(params, dict):
        raise RequestError("sampling_params", f"must be an object, got {type(params).__name__}")
    check_sampling(params)
    return params


def _count_of(params: dict[str, Any]) -> int:
    count = params.get("n")
    return 1 if count is None else count


def _samples(
    item: dict[str, Any],
    prompt: Any,
    params: dict[str, Any],
    rids: tuple[Any, str | None],
    group_id: str | None,
) -> list[Sample]:
    """`rids`: of this prompt, and of the whole call, where it has one of its own."""
    _check_prompt(prompt)
    count, (rid, lists_under) = _count_of(params), rids
    if not isinstance(rid, str):
        raise RequestError("rid", f"must be a string, got {rid!r}")
    body = {k: v for k, v in item.items() if k not in _TAKEN_OUT}
    body["sampling_params"] = {k: v for k, v in params.items() if k not in ("n", "max_new_tokens")}
    _check_types(body)
    _check_encodable(body)
    group = group_id or item.get("group_id")
    divisible = _divisible(body)
    parents = [rid] if count > 1 else []
    if lists_under is not None and lists_under != rid:
        parents.append(lists_under)
    names = tuple(parents)
    return [
        Sample(
            rid=rid if count == 1 else f"{rid}_{sample}",
            body=body,
            max_new_tokens=params.get("max_new_tokens", 128),  # SGLang's default
            group_id=str(group) if group else None,
            divisible=divisible,
            text=prompt if isinstance(prompt, str) else None,
            prompt_ids=prompt if isinstance(prompt, list) else [],
            names=names,
        )
        for sample in range(count)
    ]


_TOKEN_IDS = list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
_STRINGS = ("cache_salt", "extra_key")
_TAKEN_OUT = ("text", "input_ids", "rid", "group_id", "stream")


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise RequestError("text", "must not be empty")
        return
    if not prompt:
        raise RequestError("input_ids", "must hold at least one token id")
    # Prompts are long, and most are right: looked at one by one only to tell which id is not.
    try:
        msgspec.convert(prompt, _TOKEN_IDS)
    except msgspec.ValidationError:
        wrong = next(token for token in prompt if type(token) is not int or not 0 <= token < 2**31)
        raise RequestError("input_ids", f"must hold token ids from 0, got {wrong!r}") from None


def _check_types(body: dict[str, Any]) -> None:
    """Of fields that the router itself works with."""
    for key in _STRINGS:
        if not isinstance(value := body.get(key), str | None):
            raise RequestError(key, f"must be a string, got {value!r}")
    start = body.get("routed_experts_start_len")
    if start is not None and type(start) is not int:
        raise RequestError("routed_experts_start_len", f"must be a whole number, got {start!r}")


def _check_encodable(body: dict[str, Any]) -> None:
    """JSON knows integers of any size; the wire to the engines has 64 bits for one."""
    for key, value in body.items():
        if isinstance(value, str | bool):
            continue
        try:
            msgspec.msgpack.encode(value)
        except (OverflowError, RecursionError) as error:
            raise RequestError(key, f"cannot be passed on: {error}") from None


def _divisible(body: dict[str, Any]) -> bool:
    if body.get("logprob_start_len") not in (None, -1):
        return False
    others = body.keys() - _DIVISIBLE - {"logprob_start_len"}
    return not any(body[key] for key in others) and divisible_sampling(body["sampling_params"])


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engines allow, taken together."""

    vocabulary: int | None
    """The smallest one; None where no engine says."""
    context_tokens: int
    kv_tokens: int
    request_tokens: int
    """Prompt and output of the longest request."""


def limits_of(engines: Sequence[EngineSpec]) -> Limits:
    """There is at least one engine. Takes time for each: worth keeping while they are the same."""
    return Limits(
        min((engine.vocab_size for engine in engines if engine.vocab_size), default=None),
        max(engine.context_tokens for engine in engines),
        max(engine.kv_capacity_tokens for engine in engines),
        max(engine.longest_request_tokens for engine in engines),
    )


def check_against_engines(sample: Sample, limits: Limits) -> int:
    """How many tokens the sample may get, once its prompt is known as ids. At least one: so much may a
    request that asks for none, to score its prompt.

    SGLang counts `max_new_tokens` against the context and then quietly cuts it by up to two tokens;
    so does this, so that both end alike.

    Raises:
        RequestError: the prompt or `max_new_tokens` fits no engine, or an id is outside the vocabulary.
    """
    prompt_tokens = len(sample.prompt_ids)
    vocabulary, longest = limits.vocabulary, limits.request_tokens
    if vocabulary and (highest := max(sample.prompt_ids)) >= vocabulary:
        allowed = f"token ids must lie in [0, {vocabulary - 1}]"
        raise RequestError("input_ids", f"{allowed}, got {highest}")
    if prompt_tokens + 1 > longest:
        field_name = "text" if sample.text is not None else "input_ids"
        raise RequestError(
            field_name,
            f"the prompt has {prompt_tokens} tokens; the largest engine takes at most {longest - 1}",
        )
    wanted = sample.max_new_tokens
    if wanted is None:
        return longest - prompt_tokens
    room = min(limits.context_tokens, limits.kv_tokens) - prompt_tokens
    if wanted > room:
        raise RequestError(
            "sampling_params.max_new_tokens",
            f"must lie in [0, {room}] after a prompt of {prompt_tokens} tokens, got {wanted}",
        )
    return max(1, min(wanted, longest - prompt_tokens))
