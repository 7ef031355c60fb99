"""Has a release of xoscar changed what is replaced, or what the replacements rest on?

The signatures are checked where the package is used; here it is the code, since a new release may
do more in a place that is replaced. ``python -m tests.whole.test_places`` prints the digests of the
xoscar that is installed, and the rows of the docs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import re
from typing import Any

import pytest

from xoscar_idle import activation, patching

from ..support.processes import ROOT

KNOWN = {
    "xoscar.backends.core:ActorCaller.__getattr__": ("25531f367a30",),
    "xoscar.backends.router:Router.get_client": ("6884d3cbad0e",),
    "xoscar.backends.router:Router.get_client_via_type": ("c15ac5a26e92",),
    "xoscar.backends.context:IndigenActorContext.copy_to_buffers": ("1257130f5b6b",),
    "xoscar.backends.context:IndigenActorContext.copy_to_fileobjs": ("d19258dc02ba",),
    "xoscar.backends.pool:AbstractActorPool.on_new_channel": ("336f82fc1cfd",),
    "xoscar.backends.pool:AbstractActorPool.__init__": ("ac70852f7443",),
    "xoscar.backends.pool:AbstractActorPool.process_message": ("ad98c070a7f5",),
    "xoscar.backends.pool:AbstractActorPool.call": ("7f29c00284b7",),
    "xoscar.backends.pool:AbstractActorPool.handle_control_command": ("a3dd1df45973",),
    "xoscar.backends.router:Router._resolve_address": ("64a4a18f46a4",),
    "xoscar.backends.router:Router._create_client": ("1e90a5ecc584",),
    "xoscar.backends.router:Router._get_client_type_to_addresses": ("8a998ce050cf",),
    "xoscar.backends.core:ActorCallerThreadLocal.call": ("6d3daf85ee26",),
    "xoscar.backends.communication.socket:SocketChannel.send": ("c073c333d0e7",),
    "xoscar.backends.pool:MainActorPoolBase.monitor_sub_pools": ("8a869d7a809e",),
    "xoscar.backends.pool:MainActorPoolBase.start_monitor": ("5961657dd161",),
    "xoscar.backends.pool:MainActorPoolBase.stop_sub_pool": ("6470586ca4c5",),
    "xoscar.backends.pool:MainActorPoolBase.process_sub_pool_lost": ("d5b884b5b137",),
    "xoscar.backends.indigen.pool:MainActorPool.kill_sub_pool": ("e2290c6dcd87", "e55f1c9f5a43"),
    "xoscar.backends.indigen.pool:MainActorPool._create_sub_pool_from_parent": ("d18754a4a24a",),
    "xoscar.backends.indigen.pool:create_subprocess_exec": (
        "be899c6ef0fe",
        "eeedc72f4bee",
        "aa2954005789",
    ),
    "xoscar.backends.pool:SubActorPoolBase.__init__": ("fcfbe0a6e470",),
    "xoscar.backends.pool:_ErrorProcessor.__exit__": ("964b87344ad5",),
    "xoscar.backends.core:ActorCallerThreadLocal._listen_client": ("f76ca49a9c79",),
    "xoscar.backends.communication.socket:SocketChannel.recv": ("1fb41d637c01", "37fe876f4db2"),
    "xoscar.backends.core:ActorCallerThreadLocal": ("f74195ec9df3",),
    "xoscar.backends.communication.dummy:DummyServer.on_connected": ("a3595d732f16",),
    "xoscar.api:AsyncActorMixin.__xoscar_next__": ("8b824c6c75c7",),
    "xoscar.api:AsyncActorMixin.__xoscar_destroy_generator__": ("c0fb70887861",),
    "xoscar.api:IteratorWrapper.__anext__": ("510017e22ac8",),
    "xoscar.api:IteratorWrapper.__del__": ("a345e0eaf08d",),
    "xoscar.api:IteratorWrapper.__getstate__": ("a566039d3ea2",),
    "xoscar.api:IteratorWrapper.destroy": ("ecb7395c31e0",),
}
"""Digests of the code in xoscar 0.11.0 to 0.12.2, the oldest first."""


def _places() -> dict[str, Any]:
    """What is replaced or relied on, as far as it has code of its own."""
    found: dict[str, Any] = {}
    replaced = [place.path for part in activation.parts() for place in part.PLACES]
    for name in [*replaced, *(path for part in activation.parts() for path in part.RELIED_ON)]:
        owner, member = re.split(r"[.:](?=\w+$)", name)
        value = vars(patching.find(owner)).get(member)
        if isinstance(value, staticmethod):
            value = value.__func__
        if inspect.isfunction(value):
            found[name] = value
    # What is replaced as a whole, by another class that answers to its names.
    name = "xoscar.backends.core:ActorCallerThreadLocal"
    return {**found, name: patching.find(name)}


def digest(place: Any) -> str:
    """Of its code without comments and blank lines, whatever the version of Python."""
    lines = [line.strip() for line in inspect.getsource(place).splitlines()]
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def row(place: patching.Place) -> str:
    """What the page of the package says of a place that is replaced."""
    return f"| `{place.path.partition(':')[2]}` | {place.reason} |"


def test_each_replaced_place_has_a_row_with_its_reason() -> None:
    names = ("connection", "supervision", "telemetry", "http")
    for part, name in zip(activation.parts(), names, strict=True):
        page = (ROOT / f"docs/architecture/{name}.md").read_text()
        rows = re.findall(r"^\| `[\w.]+` \| .* \|$", page, re.MULTILINE)
        assert [each for each in rows if ".py`" not in each] == [row(each) for each in part.PLACES]


def test_the_code_is_that_which_was_read() -> None:
    changed = [
        f"{name} ({digest(place)})"
        for name, place in _places().items()
        if digest(place) not in KNOWN.get(name, ())
    ]
    version = importlib.metadata.version("xoscar")
    assert not changed, (
        f"xoscar {version} has changed {', '.join(changed)}: see whether what replaces it, or "
        "rests on it, still does what it does, then add the digest"
    )


def test_what_has_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = next(iter(_places().items()))
    monkeypatch.setitem(KNOWN, name, ("000000000000",))
    with pytest.raises(AssertionError, match=rf"{name} \({digest(place)}\)"):
        test_the_code_is_that_which_was_read()


if __name__ == "__main__":
    for name, code in _places().items():
        print(f'    "{name}": ("{digest(code)}",),')
    for part in activation.parts():
        print(f"\n{part.NAME}", *map(row, part.PLACES), sep="\n")
