"""The places of xoscar that the life of connections takes, each with its reason.

Beside them the ``close`` of each event loop that has connections is wrapped, on the loop itself
(:func:`.registry.watch_loops`): a loop tells nobody that it is closed.
"""

from __future__ import annotations

from typing import Any

from ..patching import Place
from . import accepted, deadlines, frames, hosted, leases, preexisting, registry, routing, streams


def _call(
    self: Any,
    router: Any,
    dest_address: str,
    message: Any,
    wait: bool = True,
    proxy_addresses: list[str] | None = None,
) -> Any:
    caller = registry.here(self)
    return caller.call(router, dest_address, message, wait, proxy_addresses)


def _call_with_client(self: Any, client: Any, message: Any, wait: bool = True) -> Any:
    caller = preexisting.holder(self, client) or registry.here(self)
    return caller.call_with_client(client, message, wait)


def _call_send_buffers(self: Any, client: Any, *args: Any, **kwargs: Any) -> Any:
    caller = preexisting.holder(self, client) or registry.here(self)
    return caller.call_send_buffers(client, *args, **kwargs)


def _cancel_tasks(self: Any) -> None:
    for caller in registry.of_this_thread(self):
        if not caller.loop.is_closed():
            caller.cancel_tasks()


def _attribute(self: Any, name: str) -> Any:
    return getattr(registry.here(self), name)


_CALLER = "xoscar.backends.core:ActorCaller"
_STOCK_CALLER = "xoscar.backends.core:ActorCallerThreadLocal"
_ROUTER = "xoscar.backends.router:Router"
_CONTEXT = "xoscar.backends.context:IndigenActorContext"
_POOL = "xoscar.backends.pool:AbstractActorPool"
_MAIN_POOL = "xoscar.backends.pool:MainActorPoolBase"
_CHANNEL = "xoscar.backends.communication.socket:SocketChannel"
_STREAM = "xoscar.api:IteratorWrapper"
_SERVER = "xoscar.backends.communication.socket:_BaseSocketServer"

PLACES = (
    Place(
        _CALLER,
        "__getattr__",
        "all calls go to our ActorCaller of the thread and the loop",
        lambda _: _attribute,
        ("self", "item"),
    ),
    Place(_CALLER, "call", "the same, without the cost of a failed look-up", lambda _: _call),
    Place(
        _CALLER,
        "call_with_client",
        "a transfer begun before install() goes on where it began",
        lambda _: _call_with_client,
    ),
    Place(_CALLER, "call_send_buffers", "the same over UCX", lambda _: _call_send_buffers),
    Place(
        _CALLER,
        "cancel_tasks",
        "a context's destructor calls it, on any loop or none",
        lambda _: _cancel_tasks,
    ),
    Place(
        _STOCK_CALLER,
        "_listen_client",
        "what xoscar was connecting at install() is drained, too",
        preexisting.listen,
        ("self", "client"),
    ),
    Place(
        _ROUTER,
        "get_client",
        "opens a connection each time and keeps none",
        lambda _: routing.get_client,
        ("self", "external_address", "from_who", "cached", "proxy_addresses", "kw"),
    ),
    Place(
        _ROUTER,
        "get_client_via_type",
        "the same for one transport",
        lambda _: routing.get_client_via_type,
        ("self", "external_address", "client_type", "from_who", "cached", "kw"),
    ),
    Place(
        _CONTEXT,
        "copy_to_buffers",
        "holds a lease on the connection for the whole transfer",
        leases.leased,
        ("self", "local_buffers", "remote_buffer_refs", "block_size"),
    ),
    Place(
        _CONTEXT,
        "copy_to_fileobjs",
        "the same for file objects",
        leases.leased,
        ("self", "local_fileobjs", "remote_fileobj_refs", "block_size"),
    ),
    Place(
        _POOL,
        "on_new_channel",
        "keeps accepted connections alive, and closes those that stay idle",
        accepted.serve,
        ("self", "channel"),
    ),
    Place(
        _POOL,
        "process_message",
        "tells which accepted connections have a request in process",
        accepted.process,
        ("self", "message", "channel"),
    ),
    Place(_POOL, "__init__", "tells which pools are in the process", hosted.followed),
    Place(
        _SERVER,
        "channel_class",
        "accepted connections tell whether a message is being received",
        lambda _: frames.AcceptedChannel,
    ),
    Place(
        _MAIN_POOL,
        "monitor_sub_pools",
        "outlives the deadline of whoever made the pool",
        deadlines.without,
        ("self",),
    ),
    Place(
        _STREAM,
        "__del__",
        "an event loop does not stand still until a pool knows that nobody reads its generator",
        streams.let_go,
        ("self",),
    ),
    Place(
        _STREAM,
        "__getstate__",
        "one whose message is only measured is still its sender's to let go of",
        streams.hand_on,
        ("self",),
    ),
)

RELIED_ON: dict[str, tuple[str, ...] | None] = {
    f"{_ROUTER}._resolve_address": ("self", "external_address", "proxy_addresses"),
    f"{_ROUTER}._create_client": ("self", "client_type", "address", "kw"),
    f"{_ROUTER}._get_client_type_to_addresses": ("self", "external_address"),
    f"{_ROUTER}._local_mapping": None,
    f"{_ROUTER}._mapping": None,
    f"{_ROUTER}._proxy_config": None,
    f"{_CALLER}._thread_local": None,
    f"{_STOCK_CALLER}.call": (
        "self",
        "router",
        "dest_address",
        "message",
        "wait",
        "proxy_addresses",
    ),
    f"{_STOCK_CALLER}._clients": None,
    f"{_STOCK_CALLER}._client_to_message_futures": None,
    f"{_CHANNEL}.send": ("self", "message"),
    f"{_CHANNEL}.recv": ("self",),
    f"{_CHANNEL}.reader": None,
    f"{_CHANNEL}.writer": None,
    f"{_CHANNEL}._send_lock": None,
    f"{_STREAM}.destroy": ("self",),
    f"{_SERVER}._channels": None,
    f"{_SERVER}.channel_class": None,
    "xoscar.backends.communication.dummy:DummyChannel._closed": None,
    "xoscar.backends.communication.dummy:DummyClient._task": None,
    "xoscar.backends.communication.dummy:DummyServer.on_connected": ("self", "args", "kwargs"),
}
"""What is used of xoscar without being replaced, with the parameters of what is a function."""
