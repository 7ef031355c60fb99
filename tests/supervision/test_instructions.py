"""What operators can ask for: what is one, and once per request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xoscar_idle.supervision.instructions import (
    DRAINING,
    INSTRUCTIONS,
    REMEMBERED,
    Applied,
    InstructionRefused,
    Ledger,
    Order,
)


def order(instruction: str = "restart", address: str = "a:1", **given: Any) -> Order:
    return Order.parse({"instruction": instruction, "address": address, **given})


def test_each_has_an_id() -> None:
    first, second = order(), order()
    assert first.request_id
    assert first.request_id != second.request_id
    assert order(request_id="r").request_id == "r"


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_what_takes_time_can_be_bounded(instruction: str) -> None:
    if instruction in DRAINING:
        assert order(instruction, drain="1.5").drain == 1.5
        assert order(instruction, drain=0).drain == 0
    else:
        with pytest.raises(InstructionRefused, match="drain is for restart and give_up, not for"):
            order(instruction, drain=1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"instruction": "stop"}, "unknown instruction 'stop'; there are pause, resume, restart"),
        ({"instruction": None}, "unknown instruction None"),
        ({"instruction": ["restart"]}, r"unknown instruction \['restart'\]"),
        ({"address": ""}, "address must be that of a sub-pool, got ''"),
        ({"address": 7}, "address must be that of a sub-pool, got 7"),
        ({"engine": 1}, "unknown field 'engine'; there are instruction, address, request_id"),
        ({"expect_incarnation": 0}, "expect_incarnation must be a whole number from 1, got 0"),
        ({"expect_incarnation": True}, "expect_incarnation must be a whole number from 1, got T"),
        ({"expect_incarnation": 1.5}, "expect_incarnation must be a whole number from 1, got 1.5"),
        ({"drain": -1}, "drain must be a finite number of seconds, zero or more, got -1"),
        ({"drain": "soon"}, "drain must be a number of seconds, got 'soon'"),
        ({"drain": float("inf")}, "drain must be a finite number of seconds"),
        ({"request_id": 5}, "request_id must be at most 200 printable characters, got 5"),
        ({"request_id": "x" * 201}, "request_id must be at most 200 printable characters"),
        ({"request_id": "a\nb"}, "request_id must be at most 200 printable characters"),
    ],
)
def test_what_is_none(given: dict[str, Any], text: str) -> None:
    with pytest.raises(InstructionRefused, match=text) as refused:
        Order.parse({"instruction": "restart", "address": "a:1"} | given)
    assert refused.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["instruction", "address", "request_id", "expect_incarnation", "drain"])
        | st.text(max_size=5),
        JSON | st.sampled_from([*INSTRUCTIONS]),
    )
)
def test_whatever_is_given(given: dict[str, Any]) -> None:
    try:
        made = Order.parse(given)
    except InstructionRefused:
        return
    assert made.instruction in INSTRUCTIONS
    assert made.address
    assert Order.parse({k: v for k, v in vars(made).items() if v is not None}) == made


def test_the_same_request_is_carried_out_once() -> None:
    ledger = Ledger()
    asked = order(request_id="r")
    assert ledger.known(asked) is None
    begun = ledger.begin(asked, lineage=1, incarnation=2)
    assert ledger.known(order(request_id="r")) is begun
    assert ledger.of("r") is begun
    with pytest.raises(InstructionRefused, match="'r' was given to restart a:1; use another one"):
        ledger.known(order("pause", request_id="r"))
    with pytest.raises(InstructionRefused):
        ledger.known(order(address="b:1", request_id="r"))


def test_one_at_a_time() -> None:
    ledger = Ledger()
    first = ledger.begin(order(request_id="first"), 1, 1)
    with pytest.raises(InstructionRefused, match=r"restart of pool a:1 is being .* first\)") as no:
        ledger.begin(order("pause"), 1, 1)
    assert no.value.status == 409
    ledger.begin(order("pause"), 2, 1)
    giving_up = ledger.begin(order("give_up"), 1, 1)
    assert (first.status, first.reason) == ("failed", "it was given up meanwhile")
    first.end("succeeded", "too late")
    assert first.status == "failed", "what is told stays"
    giving_up.end("succeeded", "")
    assert ledger.running(1) is None
    ledger.begin(order(), 1, 2)


def test_it_forgets_the_oldest() -> None:
    ledger = Ledger()
    for number in range(REMEMBERED + 5):
        ledger.begin(order(request_id=f"{number}"), 1, 1).end("succeeded", "")
    assert ledger.of("4") is None
    assert ledger.of("5") is not None
    assert len(ledger._by_id) == REMEMBERED


def test_another_version_may_tell_more() -> None:
    told = {**vars(Applied("r", "restart", "a:1", 1, 1)), "more": 1}
    assert Applied.read(told).request_id == "r"
