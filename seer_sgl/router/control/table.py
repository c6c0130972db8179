"""SGLang's control interface as data: every path, where it goes, and how answers become one. Pure."""

from dataclasses import dataclass, replace
from enum import Enum

from seer_sgl.router.control import requests as ask


class Scope(Enum):
    """Which engines a call is for."""

    LOCAL = "the router itself answers"
    ONE = "any one engine"
    ALL = "every engine, at once"


class Merge(Enum):
    """What one answer is made of the engines' answers."""

    PASS = "the engine's own"
    SUCCESS = "SGLang's `success` and `message`; good only where all are"
    NONE = "nothing; it is always good"
    TEXT = "text; good only where all are"
    SAME = "good only where all are and say the same"
    SERVER_INFO = "one body with sums"
    MODEL_INFO = "one body with the weight version that all have"
    WEIGHT_VERSION = "that version alone"
    LOADS = "all loads, and one more for the router's queue"
    LOAD = "the same in SGLang's older shape"
    WORKER_LOADS = "the same in the stock router's shape"
    METRICS = "all metrics, each with its engine's address"


class Act(Enum):
    """What the router does itself besides asking engines."""

    NOTHING = ""
    ABORT = "ends requests of its own"
    PAUSE = "stops dispatching"
    CONTINUE = "dispatches again"
    INIT_GROUP = "gives every engine ranks of its own"
    BEGIN = "opens an update"
    END = "closes it"
    UPDATE = "lets nothing run meanwhile, and keeps engines that are out of step out of traffic"
    VERSION = "notes the version"
    CHECK = "keeps engines out of traffic whose weights it resets"
    FLUSH = "notes that old KV is gone"
    RELEASE = "waits until nothing runs, and dispatches no more"
    RESUME = "dispatches again once all memory is back"
    LORA = "starts a new epoch"
    OPEN_SESSION = "notes which engine has it"
    CLOSE_SESSION = "asks that engine"


READ = ("GET",)
WRITE = ("POST",)
BOTH = ("GET", "POST")


@dataclass(frozen=True, slots=True)
class Row:
    """One path.

    Args:
        asks: the method to ask engines with; the client's own where empty.
        path_asked: SGLang's path where it is another one.
        request: what the body must say; None where engines expect no body. An empty one becomes `{}`.
        full: an update of this kind leaves no weight as it was.
        own_session: SGLang wants it between begin and end.
        older: an older name, or one that SGLang has dropped.
    """

    path: str
    methods: tuple[str, ...]
    scope: Scope
    merge: Merge
    text: str
    act: Act = Act.NOTHING
    asks: str = ""
    path_asked: str = ""
    request: type | None = None
    full: bool = False
    own_session: bool = False
    older: bool = False

    @property
    def target(self) -> str:
        """SGLang's path."""
        return self.path_asked or self.path


def _command(
    path: str, request: type, text: str, act: Act = Act.NOTHING, merge: Merge = Merge.SUCCESS
) -> Row:
    return Row(path, WRITE, Scope.ALL, merge, text, act, request=request)


def _update(path: str, request: type, text: str, full: bool) -> Row:
    """What is not full is what SGLang wants between begin and end."""
    row = _command(path, request, text, Act.UPDATE)
    return replace(row, full=full, own_session=not full)


def _switch(
    path: str, request: type | None, text: str, act: Act = Act.NOTHING, merge: Merge = Merge.TEXT
) -> Row:
    """SGLang takes these by GET, too, and wants the body all the same."""
    return Row(path, BOTH, Scope.ALL, merge, text, act, asks="POST", request=request)


def _question(path: str, request: type, text: str) -> Row:
    return Row(path, WRITE, Scope.ONE, Merge.PASS, text, request=request)


def _named(path: str, request: type, text: str, act: Act = Act.NOTHING) -> Row:
    return Row(path, BOTH, Scope.ONE, Merge.PASS, text, act, asks="POST", request=request)


def _view(path: str, merge: Merge, text: str, asked: str = "", older: bool = False) -> Row:
    return Row(path, READ, Scope.ALL, merge, text, path_asked=asked, older=older)


_STORE = "/hicache/storage-backend"
_LOADS = "/v1/loads?include=core"

_ROLLOUT = (
    _command(
        "/abort_request",
        ask.Abort,
        "End one request or all; they are answered with what they have.",
        Act.ABORT,
        Merge.NONE,
    ),
    _command("/pause_generation", ask.Pause, "Stop generating on every engine.", Act.PAUSE),
    _command("/continue_generation", ask.Continue, "Generate again.", Act.CONTINUE),
    Row("/flush_cache", BOTH, Scope.ALL, Merge.TEXT, "Forget all KV, or say why not.", Act.FLUSH),
)
_WEIGHTS = (
    _command("/init_weights_update_group", ask.InitGroup, "Join a group for weights.", Act.INIT_GROUP),
    _command("/destroy_weights_update_group", ask.Group, "Leave that group."),
    _command("/begin_weight_update", ask.Selected, "Open a weight update.", Act.BEGIN),
    _command("/end_weight_update", ask.Anything, "Close it.", Act.END),
    _update(
        "/update_weights_from_distributed",
        ask.FromDistributed,
        "Take weights from a process group.",
        full=False,
    ),
    _update("/update_weights_from_tensor", ask.FromTensor, "Take weights from memory.", full=False),
    _update("/update_weights_from_disk", ask.FromDisk, "Take weights from a folder.", full=True),
    _update(
        "/update_weights_from_ipc", ask.FromIpc, "Take weights from a checkpoint engine.", full=True
    ),
    _command("/update_weight_version", ask.NewVersion, "Name the weights.", Act.VERSION),
    _named("/get_weights_by_name", ask.WeightName, "Some values of one weight."),
    _switch("/weights_checker", ask.Check, "Compare the weights of all engines.", Act.CHECK, Merge.SAME),
    _command("/load_lora_adapter", ask.Adapter, "Load an adapter.", Act.LORA),
    _command(
        "/load_lora_adapter_from_tensors",
        ask.AdapterInMemory,
        "Load an adapter from memory.",
        Act.LORA,
    ),
    _command("/unload_lora_adapter", ask.AdapterName, "Unload an adapter.", Act.LORA),
)
_MEMORY = (
    _switch("/release_memory_occupation", ask.Tags, "Give device memory back.", Act.RELEASE, Merge.PASS),
    _switch("/resume_memory_occupation", ask.Tags, "Take it again.", Act.RESUME, Merge.PASS),
    Row(f"{_STORE}/clear", WRITE, Scope.ONE, Merge.TEXT, "Empty the KV store that engines share."),
    Row(_STORE, READ, Scope.ALL, Merge.SAME, "The KV store that engines use."),
    Row(_STORE, ("PUT",), Scope.ALL, Merge.TEXT, "Use a KV store.", request=ask.Store),
    Row(_STORE, ("DELETE",), Scope.ALL, Merge.TEXT, "Use no KV store."),
)
_SESSIONS = (
    _named("/open_session", ask.OpenSession, "Open a session on one engine.", Act.OPEN_SESSION),
    _named("/close_session", ask.CloseSession, "Close a session.", Act.CLOSE_SESSION),
)
_OPERATION = (
    _switch("/start_profile", ask.Anything, "Record a profile."),
    _switch("/stop_profile", None, "End the profile."),
    _switch("/freeze_gc", None, "Take long-lived objects out of garbage collection."),
    _switch("/slow_down", ask.SlowDown, "Make every forward pass slower.", merge=Merge.PASS),
    Row(
        "/set_internal_state",
        ("POST", "PUT"),
        Scope.ALL,
        Merge.PASS,
        "Change a setting of the scheduler.",
        request=ask.State,
    ),
)
_VIEWS = (
    _view("/server_info", Merge.SERVER_INFO, "Settings and state of all engines as of one server."),
    _view("/get_server_info", Merge.SERVER_INFO, "As /server_info.", "/server_info", older=True),
    _view("/model_info", Merge.MODEL_INFO, "The model, and the version of its weights."),
    _view("/get_model_info", Merge.MODEL_INFO, "As /model_info.", "/model_info", older=True),
    _view("/get_weight_version", Merge.WEIGHT_VERSION, "The version alone.", "/model_info", older=True),
    _view("/v1/loads", Merge.LOADS, "What engines run, and what waits in the router."),
    _view("/get_load", Merge.LOAD, "As /v1/loads, in an older shape.", _LOADS, older=True),
    _view("/get_loads", Merge.WORKER_LOADS, "As /v1/loads, by worker.", _LOADS, older=True),
    _view("/engine_metrics", Merge.METRICS, "Prometheus metrics of all engines.", "/metrics"),
)
_QUESTIONS = (
    _question("/tokenize", ask.Tokenize, "Text to tokens."),
    _question("/v1/tokenize", ask.Tokenize, "Text to tokens."),
    _question("/detokenize", ask.Detokenize, "Tokens to text."),
    _question("/v1/detokenize", ask.Detokenize, "Tokens to text."),
    _question("/parse_function_call", ask.FunctionCall, "Find the tool calls in a text."),
    _question("/separate_reasoning", ask.Reasoning, "Split a text into reasoning and answer."),
)
TABLE: tuple[Row, ...] = (
    *_ROLLOUT,
    *_WEIGHTS,
    *_MEMORY,
    *_SESSIONS,
    *_OPERATION,
    *_VIEWS,
    *_QUESTIONS,
)

ROWS: dict[tuple[str, str], Row] = {(row.path, m): row for row in TABLE for m in row.methods}


def row_of(path: str, method: str) -> Row | None:
    """The row of a call; None for what the table does not know."""
    return ROWS.get((path, method))
