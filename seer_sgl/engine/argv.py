"""SGLang's command line and environment for one engine. The one place that builds them."""

import os
import sys
from pathlib import Path

from seer_sgl.config import CPU_KV_TOKENS, CPU_MAX_RUNNING, EngineConfig
from seer_sgl.kv.pool import client_bounds, hicache_args
from seer_sgl.spec.settings import DRAFT_VARIABLE, encode


def server_argv(config: EngineConfig, port: int, on_cpu: bool) -> list[str]:
    """The command that starts the server on the loopback interface.

    Flags that the user gives come last, where SGLang lets the last one of a name win.
    """
    argv = [
        *(sys.executable, "-m", "sglang.launch_server"),
        *("--model-path", config.model),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--page-size", str(config.page_tokens)),
        # An idle scheduler spins otherwise, and takes a core from its neighbours.
        "--sleep-on-idle",
        # Of an answer that streams, SGLang otherwise sends all that there is with every token.
        "--incremental-streaming-output",
        "--enable-cache-report",
        # Without it an answer does not say how long its request waited for its prefix.
        "--enable-metrics",
        # SGLang warms up with an English sentence, which has no token in some vocabularies; an empty
        # prompt ends the server. The agent warms it up with a token id.
        "--skip-server-warmup",
        *("--log-level-http", "warning"),
    ]
    kv_tokens, max_running = config.kv_tokens, config.max_running_requests
    if on_cpu:
        argv += ["--device", "cpu", "--attention-backend", "torch_native"]
        # SGLang's default makes float16 of a float32 model, which a CPU computes slowly.
        argv += ["--dtype", "float32", "--disable-overlap-schedule", "--hicache-ratio", "2"]
        kv_tokens, max_running = kv_tokens or CPU_KV_TOKENS, max_running or CPU_MAX_RUNNING
    if kv_tokens is not None:
        argv += ["--max-total-tokens", str(kv_tokens)]
    if max_running is not None:
        argv += ["--max-running-requests", str(max_running)]
    if config.pool is not None:
        argv += hicache_args(config.page_tokens)
    if config.draft is not None:
        argv += ["--speculative-algorithm", "SEER"]
    return [*argv, *config.extra_args]


def server_environment(config: EngineConfig) -> dict[str, str]:
    """What the server needs on top of this process's environment."""
    # SGLang compiles small kernels on first use with the `ninja` that is installed beside it.
    scripts = str(Path(sys.executable).parent)
    environment = {"PATH": os.pathsep.join((scripts, os.environ.get("PATH", os.defpath)))}
    if config.model.startswith("/"):
        environment["HF_HUB_OFFLINE"] = "1"
    # OpenMP's threads spin while they wait, and take the cores from other servers, and from our own
    # kernels' threads: beside one busy process a step on a CPU takes three times as long.
    environment["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    if config.threads is not None and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    if config.draft is not None:
        environment[DRAFT_VARIABLE] = encode(config.draft)
    if config.pool is not None:
        # Its transfer engine looks for an address by asking the internet, unless it is told one.
        environment["SGLANG_HOST_IP"] = config.local_host
        environment |= config.pool.environment(config.local_host, config.segment_bytes)
        environment |= client_bounds(os.environ)
    return environment
