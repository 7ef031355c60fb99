"""The places of xoscar that the supervision of sub-pools takes, each with its reason."""

from __future__ import annotations

from ..patching import Place
from . import beat, crash, ending, monitor, recovery, starting

_SUB_POOL = "xoscar.backends.pool:SubActorPoolBase"
_MAIN_POOL = "xoscar.backends.pool:MainActorPoolBase"
_POOL = "xoscar.backends.pool:AbstractActorPool"
_INDIGEN = "xoscar.backends.indigen.pool"

PLACES = (
    Place(
        _MAIN_POOL,
        "sub_processes",
        "tells when there is another process, however it came there",
        monitor.Watched,
    ),
    Place(
        _MAIN_POOL,
        "start_monitor",
        "a waiter per process in place of the poll, also for pools that start empty",
        monitor.started,
        ("self",),
    ),
    Place(
        _MAIN_POOL,
        "stop_sub_pool",
        "an end that was asked for is no crash, and loses nothing",
        ending.stopped,
        ("self", "address", "process", "timeout", "force"),
    ),
    Place(
        f"{_INDIGEN}:MainActorPool",
        "kill_sub_pool",
        "an end that was asked for is no crash",
        monitor.killed,
        ("self", "process", "force"),
    ),
    Place(
        f"{_INDIGEN}:MainActorPool",
        "_message_handler",
        "answers who asks for sub-pools, and who waits for their recovery",
        monitor.handlers,
    ),
    Place(
        f"{_INDIGEN}:MainActorPool",
        "_create_sub_pool_from_parent",
        "a start that fails tells what the process died of",
        starting.started,
        ("actor_pool_config", "process_index", "start_python"),
    ),
    Place(
        _POOL,
        "call",
        "tells which actors could not be created again",
        recovery.noted,
        ("self", "dest_address", "message"),
    ),
    Place(
        _INDIGEN,
        "create_subprocess_exec",
        "sub-pools are started with memory in which they tell what they do",
        starting.spawned,
        ("args", "kwargs"),
    ),
    Place(
        _SUB_POOL,
        "__init__",
        "tells whose event loop gives signs of life",
        beat.follow,
        (
            "self",
            "process_index",
            "label",
            "external_address",
            "internal_address",
            "env",
            "router",
            "config",
            "servers",
            "main_address",
            "main_pool_pid",
        ),
    ),
    Place(
        f"{_INDIGEN}:SubActorPool",
        "_message_handler",
        "tells which requests are in process",
        beat.handlers,
    ),
    Place(
        "xoscar.backends.pool:_ErrorProcessor",
        "__exit__",
        "our errors are understood in processes without us",
        crash.sent,
        ("self", "exc_type", "exc_val", "exc_tb"),
    ),
)

RELIED_ON: dict[str, tuple[str, ...] | None] = {
    f"{_MAIN_POOL}._monitor_task": None,
    f"{_MAIN_POOL}._auto_recover": None,
    f"{_MAIN_POOL}._on_process_down": None,
    f"{_MAIN_POOL}._on_process_recover": None,
    f"{_MAIN_POOL}.monitor_sub_pools": ("self",),
    f"{_MAIN_POOL}.process_sub_pool_lost": ("self", "address"),
    f"{_SUB_POOL}._main_address": None,
    "xoscar.backends.message:_AsCauseBase": None,
    "xoscar.api:AsyncActorMixin.__xoscar_next__": ("self", "generator_uid"),
    "xoscar.api:AsyncActorMixin.__xoscar_destroy_generator__": ("self", "generator_uid"),
    "xoscar.api:IteratorWrapper.__anext__": ("self",),
}
"""What is used of xoscar without being replaced, with the parameters of what is a function."""
