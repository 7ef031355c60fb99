"""The objects of a type, among all that a program has made."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from xoscar_idle.instances import instances

from .support.processes import run


class Base:
    pass


class Derived(Base):
    pass


class Other:
    pass


def test_those_of_a_type_and_of_types_derived_from_it() -> None:
    kept = [Base(), Derived(), type("Derived", (Derived,), {})(), Other(), Base]
    assert {id(each) for each in instances(Base)} == {id(each) for each in kept[:3]}
    assert {id(each) for each in instances(Derived, Other)} == {id(each) for each in kept[1:4]}
    assert instances(type("Unused", (), {})) == []


class Refusing(type):
    """Of types that let nobody compare or hash them."""

    def __eq__(cls, other: object) -> bool:
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]


def test_objects_and_types_of_a_program_are_not_asked() -> None:
    class Proxy(metaclass=Refusing):
        """Says that it is of another class, and what it does to say so is its own."""

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise AssertionError("asked for its class")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __hash__ = None  # type: ignore[assignment]

    proxy, own = Proxy(), Base()
    assert instances(Base) == [own]
    del proxy


@pytest.mark.integration
def test_nothing_is_allocated_for_each_object() -> None:
    """Else the garbage collector would look through all of them again and again."""
    program = """
import gc
from xoscar_idle.instances import instances
class Kind: pass
kept = [[] for _ in range(100_000)]
gc.collect()
collected = []
gc.callbacks.append(lambda phase, _: collected.append(phase))
assert instances(Kind) == []
print(len(collected))
"""
    assert run(sys.executable, "-c", program).stdout == "0\n"
