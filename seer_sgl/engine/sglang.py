"""SGLang's HTTP interface as the agent uses it."""

from typing import Any

import httpx
import msgspec

from seer_sgl.engine.plugin import PROOF_KEY
from seer_sgl.types import EngineId, EngineSpec


class EngineInfo(msgspec.Struct, frozen=True):
    """What a running server says of itself."""

    spec: EngineSpec
    model: str
    sglang_version: str
    weight_version: str
    plugin: dict[str, Any] | None
    """Our plugin's own line, None where the plugin is not active in the server."""


class SGLangClient:
    """One SGLang server, on this machine or elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # A chunk takes as long as it takes: no read timeout. The server's end is noticed otherwise.
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and decoded answer.

        Raises:
            httpx.HTTPError: there was no answer.
        """
        response = await self._http.post(
            path,
            content=msgspec.json.encode(body),
            headers={"content-type": "application/json"},
        )
        return response.status_code, _decoded(response)

    async def healthy(self) -> bool:
        """True once the server has generated a token on request (takes a second or more)."""
        try:
            response = await self._http.get("/health_generate", timeout=30.0)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    async def load(self) -> tuple[int, int, int]:
        """Running requests, waiting requests, used KV tokens; summed over data-parallel ranks."""
        response = await self._http.get("/v1/loads", params={"include": "core"}, timeout=10.0)
        loads = response.raise_for_status().json()["loads"]
        running = sum(load["num_running_reqs"] for load in loads)
        waiting = sum(load["num_waiting_reqs"] for load in loads)
        return running, waiting, sum(load["num_used_tokens"] for load in loads)

    async def info(self, engine_id: EngineId) -> EngineInfo:
        """Capacity, versions, and whether our plugin is active.

        Raises:
            httpx.HTTPError: the server does not answer.
        """
        server = (await self._http.get("/server_info", timeout=30.0)).raise_for_status().json()
        model = (await self._http.get("/model_info", timeout=30.0)).raise_for_status().json()
        models = (await self._http.get("/v1/models", timeout=30.0)).raise_for_status().json()
        state = server["internal_states"][0]
        plugin = state.get(PROOF_KEY)
        spec = EngineSpec(
            engine_id=engine_id,
            kv_capacity_tokens=server["max_total_num_tokens"],
            page_tokens=server["page_size"],
            max_running_requests=state["effective_max_running_requests_per_dp"],
            context_tokens=models["data"][0]["max_model_len"],
            vocab_size=plugin["vocab_size"] if plugin else None,
        )
        return EngineInfo(
            spec=spec,
            model=model["served_model_name"],
            sglang_version=server["version"],
            weight_version=str(model["weight_version"]),
            plugin=plugin,
        )


def _decoded(response: httpx.Response) -> Any:
    try:
        return msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return response.text


def error_message(body: Any) -> str:
    """The message in any of SGLang's error shapes."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
