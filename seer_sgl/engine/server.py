"""One SGLang server of our own: started, proved, watched and stopped."""

import asyncio
import shutil
from importlib import metadata
from pathlib import Path

import msgspec

from seer_sgl.config import TRIED_SGLANG, EngineConfig
from seer_sgl.engine.argv import server_argv, server_environment
from seer_sgl.engine.process import Child, free_port
from seer_sgl.engine.sglang import EngineInfo, SGLangClient
from seer_sgl.errors import ChildFailedError, StartError
from seer_sgl.types import EngineId
from seer_sgl.version import __version__

_POLL_S = 0.5


def check_sglang_installed() -> None:
    """Raise StartError unless a tried version of SGLang is installed. Imports nothing heavy."""
    tried = ", ".join(TRIED_SGLANG)
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        raise StartError(
            f"SGLang is not installed; tried with {tried}. pip install 'seer-sgl[cpu]' or [cuda]"
        ) from None
    if version not in TRIED_SGLANG:
        raise StartError(
            f"SGLang {version} is installed; this release was tried with {tried}. "
            f"pip install sglang=={TRIED_SGLANG[-1]}"
        )


def check_model(model: str) -> None:
    """Raise StartError for a path that holds no model. `owner/name` may be a hub's and passes."""
    path = Path(model).expanduser()
    if not model:
        raise StartError("no model given: name one with --model")
    if not path.exists() and (path.is_absolute() or model.startswith(("./", "../", "~"))):
        raise StartError(f"the model path does not exist: {model}")
    if path.exists() and not (path / "config.json").is_file():
        raise StartError(f"the model path has no config.json: {model}")


class LaunchedServer:
    """A server that this process owns."""

    def __init__(self, config: EngineConfig, on_cpu: bool, log_dir: Path) -> None:
        port = free_port()
        self.client = SGLangClient(f"http://127.0.0.1:{port}")
        self._config = config
        self._on_cpu = on_cpu
        argv = server_argv(config, port, on_cpu)
        self._child = Child(f"SGLang server {config.name}", argv, log_dir / f"{config.name}.log")
        self._counts = (log_dir / f"{config.name}.metrics").absolute()

    async def start(self) -> EngineInfo:
        """Start it and wait until it has generated a token with our plugin active.

        Raises:
            ChildFailedError: it ended, was not ready in time, or runs without the plugin.
        """
        shutil.rmtree(self._counts, ignore_errors=True)
        self._counts.mkdir(parents=True)
        # Its processes count into files; where nobody says where, a killed server leaves them in /tmp.
        counting = {"PROMETHEUS_MULTIPROC_DIR": str(self._counts)}
        await self._child.start(server_environment(self._config) | counting)
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                await self._wait_healthy()
        except TimeoutError:
            timeout_s = self._config.start_timeout_s
            raise self._child.failure(f"was not ready after {timeout_s:g} s") from None
        info = await self.client.info(EngineId(self._config.name))
        self._prove_plugin(info)
        return msgspec.structs.replace(info, launched=True)

    async def _wait_healthy(self) -> None:
        while not await self.client.healthy():
            if self._child.ended:
                raise self._child.failure(f"ended with status {await self._child.wait()}")
            await asyncio.sleep(_POLL_S)

    def _prove_plugin(self, info: EngineInfo) -> None:
        """SGLang logs a plugin that fails and goes on; only the running server's word counts."""
        if info.plugin is None or info.plugin["version"] != __version__:
            found = "without" if info.plugin is None else f"with version {info.plugin['version']} of"
            raise self._child.failure(f"runs {found} the seer-sgl {__version__} plugin")
        if self._on_cpu and info.plugin["platform"] != "SeerCpuPlatform":
            raise self._child.failure(f"runs on the platform {info.plugin['platform']}")

    async def wait_ended(self) -> ChildFailedError:
        """Return once it has ended, with what to say about it."""
        status = await self._child.wait()
        return self._child.failure(f"ended with status {status}")

    async def stop(self) -> None:
        """Kill it. It has nothing to save, and asked politely it takes seconds to log a crash."""
        await self.client.close()
        await self._child.stop()
        shutil.rmtree(self._counts, ignore_errors=True)
