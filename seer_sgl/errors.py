"""Every exception that seer-sgl raises on purpose.

SeerError
├── StartError            cannot start: one line to the user, exit code 2
├── ChildFailedError      a child process ended by itself; carries the last lines of its log
├── EngineUnreachable     a server of SGLang's gave no answer, or broke off in the middle of one
├── RequestError          the caller's request is at fault; becomes an HTTP 4xx
└── IllegalEventError     a bug: an event that the core's state does not allow
"""


class SeerError(Exception):
    """Base of all of them."""


class StartError(SeerError):
    """Something outside us is missing or taken: a port, a model path, a library, a version."""


class ChildFailedError(SeerError):
    """A child process ended, or did not come up in time.

    Args:
        what: which child, in the user's words.
        log_tail: its last lines, shown to the user below the message.
    """

    def __init__(self, what: str, log_tail: str) -> None:
        super().__init__(f"{what}\n{log_tail}" if log_tail else what)
        self.what = what
        self.log_tail = log_tail


class EngineUnreachable(SeerError):
    """A SGLang server gave no answer, none that is HTTP, or only a part of one."""


class RequestError(SeerError):
    """A request that can never be served as it is.

    Args:
        field: the body's field at fault, dotted (`sampling_params.top_p`).
        message: what is wrong, the value and the allowed range.
        status: the HTTP status to answer with.
        code: a word for programs, as `model_not_found`; the status's own name where None.
    """

    def __init__(self, field: str, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.status = status
        self.code = code


class IllegalEventError(SeerError):
    """An event that contradicts the core's state; it has changed nothing.

    Args:
        message: which, and why.
        actions: what follows from the legal events that came with it; they still have to be performed.
    """

    def __init__(self, message: str, actions: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.actions = actions
