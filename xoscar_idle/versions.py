"""Reading what a process with another version of us tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def known_fields(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` among those given: a later version may tell more."""
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value for name, value in given.items() if name in names}
