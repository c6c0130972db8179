"""`RouterArgs`: the stock router's arguments as of 0.3.2, with its defaults, and what they mean here."""

import argparse
import dataclasses
import enum
import typing
from collections.abc import Iterable, Sequence
from typing import Any

POLICIES = ("random", "round_robin", "cache_aware", "power_of_two", "manual")
OTHER_POLICIES = ("bucket", "consistent_hashing", "prefix_hash")


class Use(enum.Enum):
    """What comes of an argument."""

    USED = "used"
    IDLE = "accepted; has no meaning here"
    REFUSED = "not supported"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What an argument does, and how it is written.

    Args:
        flag: its name on the command line, where it is another one.
        command: for `add_argument`, beyond what the field's type says.
    """

    use: Use
    text: str
    flag: str
    command: dict[str, Any]


def _argument(use: Use, default: Any, text: str, flag: str, command: dict[str, Any]) -> Any:
    metadata = {"meaning": Meaning(use, text, flag, command)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _used(default: Any, text: str, flag: str = "", /, **command: Any) -> Any:
    return _argument(Use.USED, default, text, flag, command)


def _idle(default: Any, flag: str = "", /, **command: Any) -> Any:
    return _argument(Use.IDLE, default, "", flag, command)


def _refused(default: Any, why: str, flag: str = "", /, **command: Any) -> Any:
    return _argument(Use.REFUSED, default, why, flag, command)


_PD = "servers that only prefill or only decode"
_DISCOVERY = "finding servers through Kubernetes; register them by POST /workers"
_TLS = "TLS; put a proxy before the router"
_AUTH = "keys and roles; keep the router on a network that you trust"


@dataclasses.dataclass
class RouterArgs:
    """Settings of a router, as programs give them to the stock one."""

    worker_urls: list[str] = _used([], "SGLang servers to take in.")
    host: str = _used("0.0.0.0", "Address to listen on.")
    port: int = _used(30000, "Port to listen on.")
    policy: str = _used("cache_aware", "Where requests go.", choices=[*POLICIES, *OTHER_POLICIES])
    max_payload_size: int = _used(512 * 1024 * 1024, "Largest body of a request, in bytes.")
    api_key: str | None = _used(None, "Key that the servers ask for.")
    prometheus_port: int | None = _used(None, "Port of /metrics.", default=29000)
    prometheus_host: str | None = _used(None, "Where that listens.", default="0.0.0.0")
    log_level: str | None = _used(
        None, "What is logged.", default="info", choices=["debug", "info", "warn", "error"]
    )
    log_dir: str | None = _used(None, "Folder for a log file.")

    # What would change the answers or open what should be closed, if it were only ignored.
    mini_lb: bool = _refused(False, _PD)
    pd_disaggregation: bool = _refused(False, _PD)
    prefill_urls: list[tuple[str, int | None]] = _refused(
        [], _PD, "prefill", nargs="+", action="append", metavar=("URL", "PORT")
    )
    decode_urls: list[str] = _refused([], _PD, "decode", nargs=1, action="append", metavar="URL")
    prefill_policy: str | None = _refused(None, _PD)
    decode_policy: str | None = _refused(None, _PD)
    service_discovery: bool = _refused(False, _DISCOVERY)
    selector: dict[str, str] = _refused({}, _DISCOVERY, nargs="+")
    prefill_selector: dict[str, str] = _refused({}, _DISCOVERY, nargs="+")
    decode_selector: dict[str, str] = _refused({}, _DISCOVERY, nargs="+")
    enable_igw: bool = _refused(False, "several models behind one router")
    backend: str = _refused("sglang", "servers other than SGLang's", choices=["sglang", "openai"])
    server_cert_path: str | None = _refused(None, _TLS, "tls-cert-path")
    server_key_path: str | None = _refused(None, _TLS, "tls-key-path")
    client_cert_path: str | None = _refused(None, _TLS)
    client_key_path: str | None = _refused(None, _TLS)
    ca_cert_paths: list[str] = _refused([], _TLS)
    control_plane_api_keys: list[tuple[str, str, str, str]] = _refused([], _AUTH)
    jwt_issuer: str | None = _refused(None, _AUTH)
    jwt_audience: str | None = _refused(None, _AUTH)

    # How the stock router does what is done otherwise here.
    worker_startup_timeout_secs: int = _idle(1800)
    worker_startup_check_interval: int = _idle(30)
    cache_threshold: float = _idle(0.3)
    balance_abs_threshold: int = _idle(64)
    balance_rel_threshold: float = _idle(1.5)
    eviction_interval_secs: int = _idle(60)
    max_tree_size: int = _idle(2**26)
    max_idle_secs: int = _idle(4 * 3600)
    assignment_mode: str = _idle("random", choices=["random", "min_load", "min_group"])
    bucket_adjust_interval_secs: int = _idle(5)
    dp_aware: bool = _idle(False)
    service_discovery_port: int = _idle(80)
    service_discovery_namespace: str | None = _idle(None)
    bootstrap_port_annotation: str = _idle("sglang.ai/bootstrap-port")
    prometheus_duration_buckets: list[float] | None = _idle(None, nargs="+")
    request_id_headers: list[str] | None = _idle(None)
    request_timeout_secs: int = _idle(1800)
    shutdown_grace_period_secs: int = _idle(180)
    max_concurrent_requests: int = _idle(-1)
    queue_size: int = _idle(100)
    queue_timeout_secs: int = _idle(60)
    rate_limit_tokens_per_second: int | None = _idle(None)
    cors_allowed_origins: list[str] = _idle([])
    retry_max_retries: int = _idle(5)
    retry_initial_backoff_ms: int = _idle(50)
    retry_max_backoff_ms: int = _idle(30_000)
    retry_backoff_multiplier: float = _idle(1.5)
    retry_jitter_factor: float = _idle(0.2)
    disable_retries: bool = _idle(False)
    health_failure_threshold: int = _idle(3)
    health_success_threshold: int = _idle(2)
    health_check_timeout_secs: int = _idle(5)
    health_check_interval_secs: int = _idle(60)
    health_check_endpoint: str = _idle("/health")
    disable_health_check: bool = _idle(False)
    cb_failure_threshold: int = _idle(10)
    cb_success_threshold: int = _idle(3)
    cb_timeout_duration_secs: int = _idle(60)
    cb_window_duration_secs: int = _idle(120)
    disable_circuit_breaker: bool = _idle(False)
    model_path: str | None = _idle(None)
    tokenizer_path: str | None = _idle(None)
    chat_template: str | None = _idle(None)
    tokenizer_cache_enable_l0: bool = _idle(False)
    tokenizer_cache_l0_max_entries: int = _idle(10_000)
    tokenizer_cache_enable_l1: bool = _idle(False)
    tokenizer_cache_l1_max_memory: int = _idle(50 * 1024 * 1024)
    reasoning_parser: str | None = _idle(None)
    tool_call_parser: str | None = _idle(None)
    mcp_config_path: str | None = _idle(None)
    history_backend: str = _idle("memory", choices=["memory", "none", "oracle", "postgres", "redis"])
    oracle_wallet_path: str | None = _idle(None)
    oracle_tns_alias: str | None = _idle(None)
    oracle_connect_descriptor: str | None = _idle(None)
    oracle_username: str | None = _idle(None)
    oracle_password: str | None = _idle(None)
    oracle_pool_min: int = _idle(1)
    oracle_pool_max: int = _idle(16)
    oracle_pool_timeout_secs: int = _idle(30)
    postgres_db_url: str | None = _idle(None)
    postgres_pool_max: int = _idle(16)
    redis_url: str | None = _idle(None)
    redis_pool_max: int = _idle(16)
    redis_retention_days: int = _idle(30)
    enable_trace: bool = _idle(False)
    otlp_traces_endpoint: str = _idle("localhost:4317")
    control_plane_audit_enabled: bool = _idle(False)
    jwt_jwks_uri: str | None = _idle(None)
    jwt_role_mapping: dict[str, str] = _idle({}, nargs="*")

    @staticmethod
    def add_cli_args(
        parser: argparse.ArgumentParser,
        use_router_prefix: bool = False,
        exclude_host_port: bool = False,
    ) -> None:
        """Add every argument to a parser.

        Args:
            use_router_prefix: as `--router-policy`, beside the arguments of a server.
            exclude_host_port: the server's own `--host` and `--port` are there already.
        """
        kinds = typing.get_type_hints(RouterArgs)
        for each in dataclasses.fields(RouterArgs):
            if exclude_host_port and each.name in ("host", "port"):
                continue
            unprefixed = each.name in ("host", "port", "worker_urls")
            prefix = "router-" if use_router_prefix and not unprefixed else ""
            meaning: Meaning = each.metadata["meaning"]
            flag = meaning.flag or each.name.replace("_", "-")
            text = f"{meaning.use.value}: {meaning.text}" if meaning.use is Use.REFUSED else meaning.text
            how = {"help": text or meaning.use.value, **_command(each, kinds[each.name], meaning)}
            parser.add_argument(f"--{prefix}{flag}", **how)

    @classmethod
    def from_cli_args(cls, args: Any, use_router_prefix: bool = False) -> "RouterArgs":
        """What a parser found. Arguments that it lacks have their defaults."""
        given = vars(args)
        found = {}
        for each in dataclasses.fields(cls):
            flag = each.metadata["meaning"].flag.replace("-", "_") or each.name
            names = [f"router_{flag}", flag] if use_router_prefix else [flag]
            value = next((given[name] for name in names if name in given), dataclasses.MISSING)
            if value is not dataclasses.MISSING:
                found[each.name] = _PARSERS[each.name](value) if each.name in _PARSERS else value
        return cls(**found)

    @staticmethod
    def _parse_selector(words: Iterable[str] | None) -> dict[str, str]:
        """`a=b` as a dict; several may stand in one word."""
        pairs = (pair.partition("=") for word in words or () for pair in word.split())
        return {key: value for key, equals, value in pairs if equals}

    @staticmethod
    def _parse_prefill_urls(given: Iterable[Sequence[str]] | None) -> list[tuple[str, int | None]]:
        return [(url, _bootstrap_port(rest)) for url, *rest in given or ()]

    @staticmethod
    def _parse_decode_urls(given: Iterable[Sequence[str]] | None) -> list[str]:
        return [url for (url,) in given or ()]


def _bootstrap_port(words: Sequence[str]) -> int | None:
    word = words[0].lower() if words else "none"
    if word != "none" and not word.isdigit():
        raise ValueError(f"Invalid bootstrap port: {words[0]}; it is a number, or none")
    return None if word == "none" else int(word)


def _keys(words: Iterable[str] | None) -> list[tuple[str, ...]]:
    return [tuple(word.split(":", 3)) for word in words or ()]


_PARSERS: dict[str, Any] = {
    "prefill_urls": RouterArgs._parse_prefill_urls,
    "decode_urls": RouterArgs._parse_decode_urls,
    "selector": RouterArgs._parse_selector,
    "prefill_selector": RouterArgs._parse_selector,
    "decode_selector": RouterArgs._parse_selector,
    "jwt_role_mapping": RouterArgs._parse_selector,
    "control_plane_api_keys": _keys,
}
"""Fields whose words on the command line mean something else than themselves."""


def _command(each: "dataclasses.Field[Any]", kind: Any, meaning: Meaning) -> dict[str, Any]:
    """A field as `add_argument` wants it: by its type, then by what is said of it."""
    default = each.default if each.default is not dataclasses.MISSING else None
    if kind is bool:
        return {"action": "store_true", "default": False, **meaning.command}
    inner = [option for option in typing.get_args(kind) if option is not type(None)]
    plain = kind if isinstance(kind, type) and not inner else (inner[0] if inner else str)
    many = typing.get_origin(kind) is list or any(typing.get_origin(i) is list for i in inner)
    how: dict[str, Any] = {"default": default, "type": _word(plain)}
    if many:
        how["nargs"] = "*"
    if many and default is None and not _optional(kind) and "action" not in meaning.command:
        how["default"] = []
    return {**how, **meaning.command}


def _word(kind: Any) -> Any:
    """The type of one word."""
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return kind if kind in (int, float) else str


def _optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)
