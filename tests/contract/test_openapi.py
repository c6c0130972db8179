"""The document says what is served, no less and no more."""

from typing import Any

import msgspec
import pytest
from starlette.routing import Route

from seer_sgl.errors import RequestError, SeerError
from seer_sgl.router.http import app
from seer_sgl.router.http.bodies import read_body
from seer_sgl.router.http.errors import error_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.openapi import declared_errors, document, documented_path
from seer_sgl.router.http.operations import Answer, Operation, Parameter
from tests.contract.raised import statuses
from tests.unit.router.conftest import cluster, run

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    """What a router that runs serves: its operations, its routes and its document."""
    seen: dict[str, Any] = {}

    def spy(front: Front) -> Any:
        seen["operations"] = app.operations(front)
        built = app.build_app(front)
        seen["routes"] = [route for route in built.routes if isinstance(route, Route)]
        return built

    async def scenario() -> None:
        async with cluster() as it:
            answer = await it.http.get("/openapi.json")
            assert answer.status_code == 200
            seen["document"] = answer.json()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seer_sgl.router.service.build_app", spy)
        run(scenario())
    return seen


def test_every_route_is_in_the_document_and_the_reverse(served: dict[str, Any]) -> None:
    routed = {
        (documented_path(route.path), method.lower())
        for route in served["routes"]
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {(path, method) for path, item in served["document"]["paths"].items() for method in item}
    assert routed == told
    assert ("/generate", "post") in told
    assert ("/openapi.json", "get") in told


def test_every_error_that_a_handler_can_raise_is_declared(served: dict[str, Any]) -> None:
    undeclared = {}
    for operation in served["operations"]:
        told = declared_errors(operation) | operation.answers.keys()
        if hidden := statuses(operation.handler) - told:
            undeclared[f"{operation.methods} {operation.path}"] = sorted(hidden)
    assert not undeclared


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_the_document_holds_together(served: dict[str, Any]) -> None:
    made = served["document"]
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) <= known
    assert made["openapi"] == "3.1.0"
    operations = [each for item in made["paths"].values() for each in item.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    for each in operations:
        assert each["summary"]
        assert each["summary"].endswith(".")
        assert any(status.startswith("2") for status in each["responses"])


async def handler(_request: Any) -> Any:
    raise AssertionError("only looked at")


def one(**of: Any) -> Operation:
    known = {"methods": ["GET"], "handler": handler, "text": "It.", "tag": "t", "answers": {}}
    return Operation(**{**known, "path": "/x", **of})


def test_an_operation_in_the_document() -> None:
    made = document(
        [
            one(
                path="/things/{name:path}",
                methods=["POST", "PUT"],
                request={"type": "object"},
                request_required=False,
                parameters=[Parameter("limit", "query", {"type": "integer"}, "How many.")],
                answers={
                    200: Answer("Here.", {"type": "string"}, streams=True),
                    202: Answer("", media=""),
                },
                errors=[404, 202],
                hidden=True,
            )
        ]
    )
    item = made["paths"]["/things/{name}"]
    assert sorted(item) == ["post", "put"]
    post = item["post"]
    assert post["deprecated"] is True
    assert post["requestBody"]["required"] is False
    limit, name = post["parameters"]
    assert (limit["in"], limit["required"], limit["description"]) == ("query", False, "How many.")
    assert (name["name"], name["in"], name["required"]) == ("name", "path", True)
    assert sorted(post["responses"]) == ["200", "202", "400", "404", "408", "413"]
    assert sorted(post["responses"]["200"]["content"]) == ["application/json", "text/event-stream"]
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    assert post["responses"]["404"]["content"]["application/json"]["schema"] == error
    assert post["responses"]["202"]["content"]["application/json"]["schema"] == error
    fields = made["components"]["schemas"]["ErrorBody"]["properties"]
    assert sorted(fields) == ["code", "message", "param", "type"]


class Thing(msgspec.Struct):
    id: str


def test_what_is_made_is_linked_to_what_takes_its_id() -> None:
    made = document(
        [
            one(path="/things", methods=["POST"], answers={200: Answer("Made.", Thing)}),
            one(path="/things/{thing}", methods=["GET", "DELETE"]),
            one(path="/things/{thing}/parts", methods=["GET"]),
            one(path="/others/{thing}", methods=["GET"]),
        ]
    )
    links = made["paths"]["/things"]["post"]["responses"]["200"]["links"]
    assert sorted(links) == ["delete_things_thing", "get_things_thing", "get_things_thing_parts"]
    assert links["delete_things_thing"]["parameters"] == {"thing": "$response.body#/id"}
    assert "links" not in made["paths"]["/things/{thing}"]["get"]["responses"]


def test_the_same_method_twice_is_a_bug() -> None:
    with pytest.raises(ValueError, match="get /x is served twice"):
        document([one(), one()])


def test_what_is_raised_is_found_in_the_source() -> None:
    class Thing:
        async def serve(self, request: Any) -> Any:
            await read_body(request, 5)
            return self.told(request)

        def told(self, request: Any) -> Any:
            if request == 1:
                raise SeerError("x")
            try:
                raise RequestError("x", "is caught", 418)
            except RequestError:
                pass
            if request == 2:
                raise RequestError("x", "y", 409 if request else 410, "z")
            return error_response(404, "x")

    assert statuses(Thing().serve) == {404, 408, 409, 410, 413, 503}
