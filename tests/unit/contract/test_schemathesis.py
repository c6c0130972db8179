"""schemathesis, unmodified, against the document that the router serves of itself."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.router.conftest import Cluster, cluster, hurried, server

SEED = 5
LEAST_CASES = 2_000
RUN = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
EXAMPLES = 60
"""Per operation and phase, besides those that schemathesis derives from the document itself."""

CHECKS = (
    "not_a_server_error status_code_conformance content_type_conformance response_headers_conformance "
    "response_schema_conformance negative_data_rejection missing_required_header unsupported_method "
    "allow_header_conformance"
).split()


async def schemathesis(it: Cluster, directory: Path) -> tuple[int, str, dict[str, Any]]:
    """Its exit code, what it printed and its report."""
    report = directory / "report.json"
    argv = ["--seed", str(SEED), "--generation-deterministic"]
    argv += ["--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing"]
    argv += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--request-timeout", "10"]
    argv += ["--suppress-health-check", "all", "--no-color", "--report-json-path", str(report)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, "run"),
        *(f"http://127.0.0.1:{it.config.http_port}/openapi.json", *argv),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert report.exists(), printed.decode()
    return process.returncode or 0, printed.decode(), json.loads(report.read_text())


@pytest.mark.timeout(300)
def test_the_document_is_true(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(server("a"), server("b")) as it:
            code, printed, report = await schemathesis(it, tmp_path)
        assert code == 0, printed
        print(json.dumps(report)[:3000])
        print(printed)

    with hurried():
        asyncio.run(scenario())
