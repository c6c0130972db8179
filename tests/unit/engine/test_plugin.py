"""When our platform offers itself to SGLang, and how a server is proved to run it."""

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seer_sgl.config import TRIED_SGLANG, EngineConfig
from seer_sgl.engine import libraries
from seer_sgl.engine.plugin import activate_platform
from seer_sgl.engine.server import LaunchedServer, check_model, check_sglang_installed
from seer_sgl.engine.sglang import EngineInfo
from seer_sgl.errors import ChildFailedError, StartError
from seer_sgl.testing.engine import FAKE_SPEC
from seer_sgl.version import __version__

OURS = "seer_sgl.engine.platform.SeerCpuPlatform"


def torch_with(*present: str) -> SimpleNamespace:
    """A torch that sees these accelerators, and has never heard of an NPU unless there is one."""

    def device(name: str) -> SimpleNamespace:
        return SimpleNamespace(is_available=lambda: name in present)

    known = {name: device(name) for name in ("cuda", "xpu", *present)}
    return SimpleNamespace(backends=SimpleNamespace(mps=device("mps")), **known)


@pytest.mark.parametrize(
    ("present", "asked_for_sglangs_own", "platform"),
    [
        ((), None, OURS),
        ((), "0", OURS),
        ((), "1", None),
        (("cuda",), None, None),
        (("xpu",), None, None),
        (("npu",), None, None),
        (("mps",), None, None),
    ],
)
def test_the_platform_is_offered_only_where_nothing_else_is(
    present: tuple[str, ...],
    asked_for_sglangs_own: str | None,
    platform: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch_with(*present))
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    if asked_for_sglangs_own is not None:
        monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", asked_for_sglangs_own)
    assert activate_platform() == platform


PROOF = {"version": __version__, "platform": "SeerCpuPlatform", "vocab_size": 5}


@pytest.mark.parametrize(
    ("on_cpu", "proof", "complaint"),
    [
        (True, PROOF, ""),
        (False, {**PROOF, "platform": "CudaSRTPlatform"}, ""),
        (True, None, f"runs without the seer-sgl {__version__} plugin"),
        (False, None, "runs without"),
        (True, {**PROOF, "version": "9.9"}, "runs with version 9.9 of the seer-sgl"),
        (True, {**PROOF, "platform": "CpuSRTPlatform"}, "runs on the platform CpuSRTPlatform"),
    ],
)
def test_a_server_counts_only_with_the_plugin_active(
    on_cpu: bool, proof: dict[str, Any] | None, complaint: str, tmp_path: Path
) -> None:
    server = LaunchedServer(EngineConfig("e0", "/m"), on_cpu, tmp_path)
    (tmp_path / "e0.log").write_text("plugin failed to load\n")
    info = EngineInfo(FAKE_SPEC, "m", "0.5.23", "default", proof)
    if not complaint:
        server._prove_plugin(info)
        return
    with pytest.raises(ChildFailedError, match=complaint) as caught:
        server._prove_plugin(info)
    assert str(caught.value).startswith("SGLang server e0 ")
    assert caught.value.log_tail == "plugin failed to load"


@pytest.mark.parametrize(
    ("installed", "complaint"),
    [
        (TRIED_SGLANG[0], ""),
        ("0.4.0", rf"SGLang 0\.4\.0 is installed.*pip install sglang=={TRIED_SGLANG[-1]}"),
        (None, r"not installed.*pip install 'seer-sgl\[cpu\]'"),
    ],
)
def test_another_sglang_or_none_is_told_with_the_remedy(
    installed: str | None, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(_name: str) -> str:
        if installed is None:
            raise metadata.PackageNotFoundError
        return installed

    monkeypatch.setattr(metadata, "version", look_up)
    if not complaint:
        check_sglang_installed()
        return
    with pytest.raises(StartError, match=complaint):
        check_sglang_installed()


def test_a_model_path_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "none"), "./none", "../none", "~/none"):
        with pytest.raises(StartError, match="does not exist: ") as caught:
            check_model(missing)
        assert missing in str(caught.value)
    with pytest.raises(StartError, match=r"no config\.json"):
        check_model(str(tmp_path))
    with pytest.raises(StartError, match="--model"):
        check_model("")
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
    check_model("owner/name")


def test_what_the_pool_lacks_is_named_as_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"libc.so.6": "libc6", "libnothing-of-the-kind.so.9": "libnothing9"}
    monkeypatch.setattr(libraries, "MOONCAKE_LIBRARIES", known)
    monkeypatch.setattr(libraries, "missing_build_tools", lambda: ["g++"])
    assert libraries.missing_libraries() == ["libnothing9"]
    assert libraries.missing_for_pool().endswith("apt-get install -y libnothing9 g++")
    monkeypatch.setattr(libraries, "MOONCAKE_LIBRARIES", {"libc.so.6": "libc6"})
    monkeypatch.setattr(libraries, "missing_build_tools", list)
    assert libraries.missing_for_pool() == ""


def test_what_is_missing_to_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(libraries, "OPENSSL_HEADER", tmp_path / "sha.h")
    assert {"g++", "libssl-dev"} <= set(libraries.missing_build_tools())
    (tmp_path / "sha.h").touch()
    monkeypatch.setenv("CXX", "sh")
    assert {"g++", "libssl-dev"}.isdisjoint(libraries.missing_build_tools())
