"""Putting something of ours in the place of attributes of xoscar, and taking it out again."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from . import gate, logs

SUPPORTED = SpecifierSet(">=0.11,<0.13")
"""The versions of xoscar whose internals are known."""


class UnsupportedXoscar(RuntimeError):
    """This xoscar is not one that can be extended; it has been left as it is."""


@dataclass(frozen=True)
class Place:
    """An attribute of xoscar that is replaced.

    ``owner`` is ``module:attribute``, or a module; ``replace`` is given what is there (None where
    nothing is) and returns what shall be. ``parameters`` are those of the replaced function in the
    supported versions; None: they are not looked at.
    """

    owner: str
    name: str
    reason: str
    replace: Callable[[Any], Any]
    parameters: tuple[str, ...] | None = None

    @property
    def path(self) -> str:
        """Where it is: ``module:attribute.attribute``."""
        return f"{self.owner}{'.' if ':' in self.owner else ':'}{self.name}"


_replaced: list[tuple[Any, str, Any]] = []  # owner, name, what was there (None: nothing)
_prevented = ""  # what an activation by environment failed with


def find(path: str) -> Any:
    """The object at ``module:attribute.attribute``, or the module where nothing follows.

    Raises
    ------
    ImportError, AttributeError
        There is none.
    """
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        found = inspect.getattr_static(found, attribute)
    return found


def check_version(found: str) -> None:
    """Raise :class:`UnsupportedXoscar` unless this version of xoscar is one that is known."""
    if found not in SUPPORTED and not SUPPORTED.contains(found, prereleases=True):
        raise UnsupportedXoscar(
            f"xoscar-idle supports {SUPPORTED}; install a supported version, or a newer xoscar-idle"
        )


def check(places: Iterable[Place], relied_on: Mapping[str, tuple[str, ...] | None]) -> None:
    """Raise :class:`UnsupportedXoscar` unless all is there as the supported versions have it.

    Parameters
    ----------
    places
        What is to be replaced.
    relied_on
        What is used besides: by path, the parameters, or None where it is no function.
    """
    expected = {place.path: place.parameters for place in places if place.parameters}
    for path, parameters in (expected | dict(relied_on)).items():
        try:
            found = find(path)
            same = parameters is None or tuple(inspect.signature(found).parameters) == parameters
        except (ImportError, AttributeError, TypeError, ValueError):
            same = False
        if not same:
            raise UnsupportedXoscar(
                f"{path} is not what xoscar {SUPPORTED} has; "
                "install an unmodified xoscar of a supported version"
            )


def version() -> str:
    """That of the xoscar which is installed."""
    try:
        return importlib.metadata.version("xoscar")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def replace(places: Iterable[Place]) -> None:
    """Put ours into each place."""
    for place in places:
        owner = find(place.owner)
        before = owner.__dict__.get(place.name)
        setattr(owner, place.name, place.replace(before))
        _replaced.append((owner, place.name, before))


def restore() -> None:
    """Put everything back."""
    while _replaced:
        owner, name, before = _replaced.pop()
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def is_active() -> bool:
    """Whether xoscar is extended in this process."""
    return bool(_replaced)


def prevented_by(error: Exception) -> None:
    """Tell from now on that activation by environment has failed with ``error``."""
    global _prevented
    _prevented = logs.one_line(error)


def why_inactive() -> str:
    """Why xoscar is not extended in this process, in a few words; empty if it is."""
    if is_active():
        return ""
    if _prevented:
        return _prevented
    if not gate.wanted():
        return f"{gate.IDLE_TIMEOUT} is not set, or off, and so is {gate.SUPERVISE}"
    if "xoscar" not in sys.modules:
        return "xoscar has not been imported yet"
    return "it was not activated, or uninstall() was called"
