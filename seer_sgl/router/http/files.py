"""`/v1/files`: OpenAI's files, as far as batches need them."""

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from seer_sgl.errors import RequestError
from seer_sgl.router.batch.form import FILE_PART, UploadForm
from seer_sgl.router.batch.objects import (
    FILE_BYTES,
    PURPOSE,
    FileDeleted,
    FileList,
    FileObject,
    check_lifetime,
)
from seer_sgl.router.batch.service import BatchService, room_needed
from seer_sgl.router.http.bodies import body_parts, json_response
from seer_sgl.router.http.front import Front
from seer_sgl.router.http.operations import Answer, Operation, Parameter

MOST_FILES = 10_000
_FORM_BYTES = 1 << 20
"""What a form may hold besides its file."""
_ID = Parameter("id", "path", {"type": "string"}, "A file's id.")
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": f"At most {FILE_BYTES} bytes."},
        "purpose": {"enum": [PURPOSE]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
    },
}


def operations(front: Front) -> list[Operation]:
    """Routes of files."""
    routes = _Files(front)
    return [*_all(routes), *_one(routes)]


def _all(routes: "_Files") -> list[Operation]:
    return [
        Operation(
            path="/v1/files",
            methods=["POST"],
            handler=routes.upload,
            text="Upload a file of lines for a batch.",
            tag="batches",
            request=_FORM,
            request_media="multipart/form-data",
            answers={200: Answer("The file.", FileObject)},
            errors=[400, 408, 413, 503, 507],
        ),
        Operation(
            path="/v1/files",
            methods=["GET"],
            handler=routes.page,
            text="A page of files.",
            tag="batches",
            answers={200: Answer("Files.", FileList)},
            errors=[400, 503],
            parameters=[
                Parameter("purpose", "query", {"type": "string"}, "Only files with this purpose."),
                Parameter("after", "query", {"type": "string"}, "The id that the last page ended with."),
                Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST_FILES}),
                Parameter("order", "query", {"enum": ["asc", "desc"]}, "By time; newest first."),
            ],
        ),
    ]


def _one(routes: "_Files") -> list[Operation]:
    return [
        Operation(
            path="/v1/files/{id}",
            methods=["GET"],
            handler=routes.retrieve,
            text="One file.",
            tag="batches",
            answers={200: Answer("The file.", FileObject)},
            errors=[404, 503],
            parameters=[_ID],
        ),
        Operation(
            path="/v1/files/{id}",
            methods=["DELETE"],
            handler=routes.delete,
            text="Delete a file that no batch needs any more.",
            tag="batches",
            answers={200: Answer("It is gone.", FileDeleted)},
            errors=[404, 409, 503, 507],
            parameters=[_ID],
        ),
        Operation(
            path="/v1/files/{id}/content",
            methods=["GET"],
            handler=routes.content,
            text="What a file holds.",
            tag="batches",
            answers={
                200: Answer("Its bytes.", None, "application/octet-stream"),
                206: Answer("The range asked for.", None, "application/octet-stream"),
                400: Answer("The range is no range.", None, "text/plain"),
                416: Answer("There is no such range.", None, "text/plain"),
            },
            errors=[400, 404, 503],
            parameters=[_ID],
        ),
    ]


class _Files:
    def __init__(self, front: Front) -> None:
        self._front = front

    @property
    def _service(self) -> BatchService:
        return batches_of(self._front)

    async def upload(self, request: Request) -> Response:
        service = self._service
        if int(request.headers.get("content-length") or 0) > FILE_BYTES + _FORM_BYTES:
            raise RequestError("file", f"is larger than the limit of {FILE_BYTES} bytes", status=413)
        form = UploadForm(request.headers.get("content-type", ""))
        upload = service.upload()
        try:
            size = 0
            with room_needed():
                async for part in body_parts(request):
                    size += len(part)
                    for data in form.feed(part):
                        await upload.add(data)
                    if size > upload.size + _FORM_BYTES:
                        raise RequestError("", "the form holds too much besides its file", status=413)
            filename, lifetime_s = _checked(form)
            return json_response(await service.keep_upload(upload, filename, PURPOSE, lifetime_s))
        finally:
            upload.discard()

    async def page(self, request: Request) -> Response:
        query = request.query_params
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RequestError("order", f"must be 'asc' or 'desc', got {order[:80]!r}")
        limit = limit_of(request, MOST_FILES, MOST_FILES)
        found = await self._service.files(
            query.get("purpose"), query.get("after", ""), order == "desc", limit
        )
        return json_response(found)

    async def retrieve(self, request: Request) -> Response:
        return json_response(await self._service.file(request.path_params["id"]))

    async def delete(self, request: Request) -> Response:
        return json_response(await self._service.delete_file(request.path_params["id"]))

    async def content(self, request: Request) -> Response:
        file, path = await self._service.content(request.path_params["id"])
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)


def batches_of(front: Front) -> BatchService:
    """Raises RequestError, 503, where the router has no data folder."""
    if front.batches is None:
        raise RequestError(
            "", "this router keeps no files: start it with --data-dir", 503, "no_data_folder"
        )
    return front.batches


def limit_of(request: Request, most: int, default: int) -> int:
    """The query's `limit`.

    Raises:
        RequestError: it is no number from 1 to `most`.
    """
    given = request.query_params.get("limit")
    if given is None:
        return default
    allowed = given.isascii() and given.isdigit() and len(given) < 10 and 1 <= int(given) <= most
    if not allowed:
        raise RequestError("limit", f"must lie in [1, {most}], got {given[:80]!r}")
    return int(given)


def _checked(form: UploadForm) -> tuple[str, int | None]:
    """A whole form's file name, and how long it is kept."""
    if not form.is_whole:
        raise RequestError("", "the form is not whole")
    if form.filename is None:
        raise RequestError(FILE_PART, "is missing")
    purpose = form.fields.get("purpose")
    if purpose != PURPOSE:
        raise RequestError("purpose", f"must be {PURPOSE!r}, got {(purpose or '')[:80]!r}")
    seconds = form.fields.get("expires_after[seconds]")
    if form.fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise RequestError("expires_after.anchor", "must be 'created_at'")
    if seconds is None:
        return form.filename, None
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise RequestError("expires_after.seconds", f"must be a number, got {seconds[:80]!r}")
    check_lifetime("expires_after.seconds", int(seconds))
    return form.filename, int(seconds)
