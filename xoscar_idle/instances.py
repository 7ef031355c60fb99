"""The objects of a type that there are in this process, whoever has made them."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any


def instances(*kinds: type) -> list[Any]:
    """All that are of these types, or of types derived from them.

    Not isinstance(): proxies among all objects act when they are asked for their class. Nor are
    types compared or hashed, which those of a program may do in ways of their own. It is done while
    a process starts: nothing is allocated per object, which would set off the garbage collector.
    """
    wanted = {id(each) for kind in kinds for each in _derived(kind)}
    objects = gc.get_objects()
    return list(itertools.compress(objects, map(wanted.__contains__, map(id, map(type, objects)))))


def _derived(kind: type) -> Iterator[type]:
    yield kind
    each: type
    for each in type.__subclasses__(kind):
        yield from _derived(each)
