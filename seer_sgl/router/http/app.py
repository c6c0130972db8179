"""The ASGI application: every family's operations as routes, errors in one shape."""

from starlette.applications import Starlette

from seer_sgl.router.http import generate, status
from seer_sgl.router.http.errors import HANDLERS
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Operation

FAMILIES = (generate, status)


def operations(front: Front) -> list[Operation]:
    """Everything that is served."""
    return [operation for family in FAMILIES for operation in family.operations(front)]


def build_app(front: Front) -> Starlette:
    """The application over a router."""
    return Starlette(
        routes=[operation.route() for operation in operations(front)],
        exception_handlers=HANDLERS,
    )
