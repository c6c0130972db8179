"""Adapters on all engines, and on those that come late."""

from seer_sgl.testing.controls import Reply
from tests.unit.router.conftest import cluster, run, until
from tests.unit.router.control.weights.test_epochs import DISK_PATH, good, pair, update
from tests.unit.router.control.weights.test_updates import post, quarantine


def test_a_late_engine_gets_adapters_in_their_order() -> None:
    async def scenario() -> None:
        a, b = pair()
        async with cluster(a) as it:
            load, unload = "/load_lora_adapter", "/unload_lora_adapter"
            await good(post(it, load, {"lora_name": "x", "lora_path": "/x"}))
            await good(update(it, "7"))
            for name in "yz":
                await good(post(it, load, {"lora_name": name, "lora_path": f"/{name}"}))
            await good(post(it, unload, {"lora_name": "y"}))
            await it.join(b)
            await until(lambda: len(it.service.roster) == 2)
            writes = [call for call in b.calls if call.method == "POST" and call.path != "/flush_cache"]
            assert [call.path for call in writes] == [DISK_PATH, load, load]
            assert [call.json()["lora_path"] for call in writes[1:]] == ["/x", "/z"]

    run(scenario())


def test_an_engine_without_an_adapter_that_others_have_gets_no_traffic() -> None:
    async def scenario() -> None:
        a, b = pair()
        adapter = {"lora_name": "x", "lora_path": "/x"}
        async with cluster(a, b) as it:
            b.script["/load_lora_adapter"] = Reply(400, {"success": False, "error_message": "no such"})
            answer = await post(it, "/load_lora_adapter", adapter)
            assert answer.status_code == 400
            assert "x" in str((await quarantine(it))["b"])
            b.script.clear()
            there = {"success": False, "error_message": "x is already loaded"}
            a.script["/load_lora_adapter"] = Reply(400, there)
            await good(post(it, "/load_lora_adapter", adapter))
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())


def test_an_adapter_from_memory_cannot_be_repeated() -> None:
    async def scenario() -> None:
        a, b = pair()
        body = {"lora_name": "x", "config_dict": {}, "serialized_named_tensors": ["gASVAA=="]}
        async with cluster(a) as it:
            await good(post(it, "/load_lora_adapter_from_tensors", body))
            await it.join(b)
            assert (await it.generate([5, 6]))["output_ids"]
            assert (await quarantine(it))["b"]
            a.script["/load_lora_adapter_from_tensors"] = Reply(400, {"message": "is already loaded"})
            await good(post(it, "/load_lora_adapter_from_tensors", body))
            assert await quarantine(it) == {"a": None, "b": None}

    run(scenario())
