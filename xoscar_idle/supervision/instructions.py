"""What an operator can ask of the supervision of one sub-pool, and what became of that."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import values
from ..versions import known_fields

INSTRUCTIONS = {
    "pause": "leave it alone: it is neither ended when it hangs nor recovered when it dies",
    "resume": "supervise it again",
    "restart": "replace its process, when the requests in process have ended",
    "retry": "recover it now, if it is down, whatever is planned",
    "give_up": "end it, and do not recover it",
    "reset": "forget its failures, and recover it if it is down",
}
"""Each, and what it does."""

DRAIN = 30.0
"""Seconds that requests in process have to end, unless the instruction says otherwise."""

DRAINING = ("restart", "give_up")
"""Instructions that wait for requests in process."""

REMEMBERED = 1000
"""Instructions of which a main pool can still tell."""

LONGEST_ID = 200
"""Characters of a request id."""


class InstructionRefused(RuntimeError):
    """It was not carried out, and changes nothing.

    ``status`` says why, as in HTTP: 400 it is none, 404 there is no such sub-pool, 409 not now.
    """

    def __init__(self, text: str, status: int = 409) -> None:
        super().__init__(text, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class InstructionFailed(RuntimeError):
    """It was carried out, and did not come to what it was for."""


@dataclass(frozen=True)
class Order:
    """An instruction for the sub-pool at ``address``."""

    instruction: str
    address: str
    request_id: str = ""
    """The same instruction with the same id is the same request. Empty: one is made up."""
    expect_incarnation: int | None = None
    """It is refused where another one is there by now. None: whichever."""
    drain: float | None = None
    """Seconds that requests in process have to end. None: :data:`DRAIN`."""

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Order:
        """That of fields from outside.

        Raises
        ------
        InstructionRefused
            A field is unknown or bad; the text names it, its value, and what there is.
        """
        known = [each.name for each in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise _bad(f"unknown field {values.shown(name)}; there are {', '.join(known)}")
        made = cls(**{"instruction": "", "address": "", **given})  # type: ignore[arg-type]
        if not isinstance(made.instruction, str) or made.instruction not in INSTRUCTIONS:
            raise _bad(
                f"unknown instruction {values.shown(made.instruction)}; "
                f"there are {', '.join(INSTRUCTIONS)}"
            )
        if not isinstance(made.address, str) or not made.address:
            raise _bad(f"address must be that of a sub-pool, got {values.shown(made.address)}")
        expected = made.expect_incarnation
        if expected is not None and not values.whole(expected):
            raise _bad(
                f"expect_incarnation must be a whole number from 1, got {values.shown(expected)}"
            )
        if made.drain is not None and made.instruction not in DRAINING:
            raise _bad(f"drain is for {' and '.join(DRAINING)}, not for {made.instruction}")
        try:
            drain = None if made.drain is None else values.seconds(made.drain)
        except ValueError as error:
            raise _bad(f"drain {error}, got {values.shown(made.drain)}") from None
        return dataclasses.replace(made, drain=drain, request_id=_identified(made.request_id))


def _identified(given: object) -> str:
    if given in ("", None):
        return uuid.uuid4().hex
    if not isinstance(given, str) or not given.isprintable() or len(given) > LONGEST_ID:
        raise _bad(
            f"request_id must be at most {LONGEST_ID} printable characters, "
            f"got {values.shown(given)}"
        )
    return given


def _bad(text: str) -> InstructionRefused:
    return InstructionRefused(text, 400)


@dataclass
class Applied:
    """What became of an instruction, in values that JSON has. Times are Unix times."""

    request_id: str
    instruction: str
    address: str
    """Of the sub-pool; where it has got another one since, that."""
    lineage: int
    incarnation: int
    """Which was there when it was accepted, and since it has succeeded: which is there then."""
    status: str = "running"
    """``running``, ``succeeded`` when that has been seen, or ``failed``."""
    reason: str = ""
    """What was done, or why it has failed."""
    accepted: float = field(default_factory=time.time)
    ended: float | None = None
    asked: str = ""
    """The address that it was asked for with."""

    @classmethod
    def read(cls, told: Mapping[str, object]) -> Applied:
        """Of what another process tells, be it of another version of us."""
        return cls(**known_fields(cls, told))

    def end(self, status: str, reason: str) -> None:
        """It has succeeded, or failed; once."""
        if self.ended is None:
            self.status, self.reason, self.ended = status, reason, time.time()


class Ledger:
    """The instructions of one main pool: each request once, and one at a time per lineage."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, tuple[Order, Applied]] = OrderedDict()
        self._running: dict[int, Applied] = {}  # by the number of the lineage

    def known(self, order: Order) -> Applied | None:
        """What became of that request, if it is one from before.

        Raises
        ------
        InstructionRefused
            Its id was that of another request.
        """
        if (found := self._by_id.get(order.request_id)) is None:
            return None
        before, applied = found
        if before != order:
            raise InstructionRefused(
                f"request_id {values.shown(order.request_id)} was given to "
                f"{before.instruction} {before.address}; use another one"
            )
        return applied

    def of(self, request_id: str) -> Applied | None:
        """What became of the request of that id; None: it is not known, or not any more."""
        found = self._by_id.get(request_id)
        return None if found is None else found[1]

    def running(self, lineage: int) -> Applied | None:
        """What is being carried out for a lineage."""
        found = self._running.get(lineage)
        return found if found is not None and found.ended is None else None

    def begin(self, order: Order, lineage: int, incarnation: int) -> Applied:
        """It is accepted.

        Raises
        ------
        InstructionRefused
            Another one is being carried out for that lineage. Giving up ends that one.
        """
        other = self.running(lineage)
        if other is not None and order.instruction != "give_up":
            raise InstructionRefused(
                f"{other.instruction} of pool {other.address} is being carried out (request_id "
                f"{other.request_id}); wait for it, or give_up"
            )
        if other is not None:
            other.end("failed", "it was given up meanwhile")
        made = Applied(
            request_id=order.request_id,
            instruction=order.instruction,
            address=order.address,
            lineage=lineage,
            incarnation=incarnation,
            asked=order.address,
        )
        self._by_id[order.request_id] = (order, made)
        self._running[lineage] = made
        while len(self._by_id) > REMEMBERED:
            _, (_, oldest) = self._by_id.popitem(last=False)
            if self._running.get(oldest.lineage) is oldest:
                del self._running[oldest.lineage]
        return made
