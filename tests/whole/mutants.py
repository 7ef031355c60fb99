"""Does the suite find what is wrong? ``python -m tests.whole.mutants [NAME...]``

Each seeded fault is put into a copy of the package, and the tests that are quick are run against
that copy until the first fails. A fault that no test finds makes the exit status 1.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..support.environment import environment
from ..support.processes import ROOT, run

LIMIT = 100
"""Seconds for the tests of one mutant; one with which they do not end is found."""

IN_VIRTUAL_TIME = (
    *(f"tests/connection/test_{name}.py" for name in ("idle", "age", "caller")),
    "tests/connection/test_limits.py::TestCap",
    "tests/connection/test_limits.py::TestAge",
    "tests/connection/test_limits.py::test_what_makes_room_is_the_least_recently_used",
    "tests/connection/test_stateful.py",
    "tests/connection/test_interleavings.py",
)
FORK = (
    "tests/whole/test_against_stock.py::test_right_here[fork-asyncio]",
    "tests/connection/test_fork.py",
)
CLOCK = ("tests/test_clock.py",)
LOCK = ("tests/connection/test_finalizers.py",)
OTHER_LOOP = ("tests/connection/test_limits.py::test_another_loop_makes_room_if_it_can",)


class Edit(NamedTuple):
    """A replacement in a file of the package; ``old`` is there exactly once."""

    file: str
    old: str
    new: str


MUTANTS: dict[str, tuple[Edit, ...]] = {
    # -- references
    "reference given back twice": (
        Edit(
            "connection/client.py",
            "                reply.set_result(message)\n            self.de_ref()\n",
            "                reply.set_result(message)\n            self.de_ref()\n"
            "            self.de_ref()\n",
        ),
    ),
    "reference not given back on a failed send": (
        Edit(
            "connection/client.py",
            "                self._forget(reply)\n                raise\n            if unsent",
            "                raise\n            if unsent",
        ),
    ),
    "reference not given back on cancellation": (
        Edit(
            "connection/client.py",
            "            self._client._forget(self)\n",
            "            pass\n",
        ),
    ),
    "reference taken after an await, at look-up": (
        Edit(
            "connection/caller.py",
            "            client = self._clients.get(route)\n            reused",
            "            client = self._clients.get(route)\n"
            "            await asyncio.sleep(0)\n            reused",
        ),
    ),
    "reference taken after an await, by who waits for a connect": (
        Edit("connection/connecting.py", "                client.hold()\n", ""),
        Edit(
            "connection/connecting.py",
            "            return await waiter\n",
            "            client = await waiter\n            client.add_ref()\n"
            "            return client\n",
        ),
    ),
    "reference kept by who is cancelled at the hand-over": (
        Edit(
            "connection/connecting.py",
            "                waiter.result().de_ref()\n",
            "                pass\n",
        ),
    ),
    # -- closing
    "unlinking after the close": (
        Edit(
            "connection/client.py",
            "            if before is State.OPEN:\n                self._owner.unlink(self)\n",
            "            if before is State.OPEN:\n"
            "                self._task.add_done_callback(lambda _: self._owner.unlink(self))\n",
        ),
    ),
    "a waiter left unsettled": (
        Edit(
            "connection/client.py",
            "for reply in list(self._requests.values()):",
            "for reply in list(self._requests.values())[1:]:",
        ),
    ),
    "a waiter for a connect left unsettled": (
        Edit(
            "connection/connecting.py",
            "        for waiter in self.waiters:\n            if not waiter.done():\n"
            "                waiter.set_exc",
            "        for waiter in self.waiters[:1]:\n            if not waiter.done():\n"
            "                waiter.set_exc",
        ),
    ),
    "a request on a connection that ended at the hand-over": (
        Edit(
            "connection/client.py",
            "if ended or self.client.closed:",
            "if self.client.closed:",
        ),
    ),
    "a stop misses a connect that succeeds just then": (
        Edit("connection/connecting.py", "        self.given_up = True\n", ""),
    ),
    "closing a connection with a lease: retired": (
        Edit(
            "connection/client.py",
            "            return\n        if self.refs == 0:\n            self.close(reason)",
            "            return\n        if not self._requests:\n            self.close(reason)",
        ),
    ),
    "closing a connection with a lease: in use, and still in its lane": (
        Edit("connection/client.py", "            self.lane.in_use(self)\n", "            pass\n"),
    ),
    "closing a connection with a lease: given back at once": (
        Edit("connection/leases.py", "stack.callback(client.de_ref)", "client.de_ref()"),
    ),
    "connections of a loop that is closed stay open": (
        Edit("connection/caller.py", "            client.sever(reason)\n", "            pass\n"),
    ),
    # -- time
    "wall clock for monotonic": (
        Edit(
            "clock.py",
            "    partial(time.clock_gettime, time.CLOCK_BOOTTIME)\n"
            '    if hasattr(time, "CLOCK_BOOTTIME")\n    else time.monotonic\n',
            "    lambda: time.time()\n",
        ),
    ),
    "a check that stops after its first round": (
        Edit("periodic.py", "        while True:\n", "        for _ in range(2):\n"),
    ),
    "a check that is not woken for what expires earlier": (
        Edit(
            "periodic.py",
            "            if self._check_at <= expiry < math.inf:\n",
            "            if expiry < math.inf:\n",
        ),
    ),
    "expired() the wrong way round": (
        Edit(
            "connection/idle.py", "since + self.timeout <= now\n", "since + self.timeout >= now\n"
        ),
    ),
    "an overdue connection is handed out": (
        Edit(
            "connection/client.py",
            "            if self.lane.expired(self, now):",
            "            if False:",
        ),
    ),
    "age cuts calls in flight": (
        Edit("connection/caller.py", 'client.retire("age")', 'client.close("age")'),
    ),
    "changed settings forget the order of falling idle": (
        Edit(
            "connection/caller.py",
            "in sorted(self._clients.values(), key=lambda c: c.idle_since or now)",
            "in list(self._clients.values())",
        ),
    ),
    # -- connecting
    "one connect per caller": (
        Edit("connection/connecting.py", "        if connect is None:\n", "        if True:\n"),
    ),
    "a connect is cancelled with the first who waits": (
        Edit(
            "connection/connecting.py",
            "            # Cancelled just after the connection was handed over?\n",
            "            connect.task.cancel()\n",
        ),
    ),
    "sent again though bytes may have been written": (
        Edit(
            "connection/client.py",
            "            raise known or self._server_closed(told) from None\n",
            "            raise transports.NotSent(str(told)) from None\n",
        ),
    ),
    "an address instead of its route": (
        Edit(
            "connection/caller.py",
            "        route = routing.resolve(router, dest_address, proxy_addresses)\n"
            "        while True:\n",
            "        route = dest_address\n        while True:\n",
        ),
    ),
    "what fails at the hand-over reaches nobody who waits": (
        Edit(
            "connection/connecting.py",
            "                error = unexpected\n",
            "                raise\n",
        ),
    ),
    "a hand-over that fails leaves its connection open": (
        Edit(
            "connection/caller.py",
            "            transports.abort(connection)  # first: what follows may fail, too\n",
            "",
        ),
    ),
    "a call that is made after a stop joins the connect that was given up": (
        Edit(
            "connection/connecting.py",
            "        self.by_route.clear()\n        for connect in list(self.all):\n",
            "        for connect in list(self.all):\n",
        ),
    ),
    # -- the cap
    "a failed connect counts for ever": (
        Edit(
            "connection/connecting.py",
            "        connect.seat.leave()\n        if error is not None:\n",
            "        if error is not None:\n",
        ),
    ),
    "the most recently used makes room": (
        Edit(
            "connection/idle.py",
            "for item, since in self._since.items()), None)",
            "for item, since in reversed(self._since.items())), None)",
        ),
    ),
    "what falls idle over the cap stays": (
        Edit(
            "connection/caller.py",
            "        if self._cap.surplus:\n            self._cap.shrink(self.loop)\n",
            "",
        ),
    ),
    "room is made without waiting for it": (
        Edit(
            "connection/cap.py",
            '                victim.close("cap")\n                await victim.wait_closed()\n',
            '                victim.close("cap")\n',
        ),
    ),
    "a seat is left twice": (
        Edit("connection/cap.py", "                self._cap = None\n", "                pass\n"),
    ),
    # -- deadlines
    "a deadline goes on when its block has ended": (
        Edit("connection/deadlines.py", "        scope.ended = True\n", "        pass\n"),
    ),
    "a deadline that has passed lets calls be sent": (
        Edit(
            "connection/deadlines.py",
            "    if limit.at <= loop.time():\n",
            "    if False:\n",
        ),
    ),
    # -- calls that wait
    "holding: what may have been executed is sent again": (
        Edit(
            "connection/failures.py",
            "executed=not unexecuted",
            "executed=False",
        ),
    ),
    "holding: what was cancelled is sent again": (
        Edit(
            "connection/holding.py",
            "        call.is_wanted = False\n        if not call.waits:\n",
            "        if not call.waits:\n",
        ),
    ),
    "holding: what is over takes room": (
        Edit(
            "connection/holding.py",
            "            bounds.process.leave(self._failure.pool, self._size or 0)\n",
            "            pass\n",
        ),
    ),
    "holding: a loop that is closed takes its room along": (
        Edit("connection/caller.py", "        self._holding.sever()\n", ""),
    ),
    "holding: an answer is kept until the garbage is collected": (
        Edit("connection/holding.py", "        self.outcome.call = None\n", ""),
    ),
    "holding: who comes later has the time of those before": (
        Edit("connection/holding.py", "self.loop.time() >= until - SAME_TIME:", "False:"),
    ),
    "holding: a call is cancelled where it was": (
        Edit(
            "connection/caller.py",
            "        where = self._holding.whereabouts(message, address)\n",
            "        where: str | None = address\n",
        ),
    ),
    "holding: a successor that goes, too, costs its calls": (
        Edit(
            "connection/holding.py",
            "is_there is False or not self._hold(",
            "True or not self._hold(",
        ),
    ),
    "holding: what cannot be written has no end": (
        Edit(
            "connection/bounds.py",
            "    except Exception:\n        return None\n",
            "",
        ),
    ),
    "holding: an answer that cannot be read is taken for a lost connection": (
        Edit(
            "connection/client.py",
            "                error.is_answer = True\n",
            "                pass\n",
        ),
    ),
    "holding: a request to cancel overtakes what is being written again": (
        Edit(
            "connection/holding.py",
            "                call.outcome.cancel()\n            return None, call.address",
            "                pass\n            return None, call.address",
        ),
    ),
    "holding: one of two calls of one id is forgotten": (
        Edit(
            "connection/holding.py",
            "(*self._calls.values(), *waiting)",
            "(*self._calls.values(),)",
        ),
    ),
    "a generator that is garbage lets its loop stand still": (
        Edit("connection/streams.py", "telling.join(patience)", "telling.join()"),
    ),
    "a generator is lost with a message that is measured": (
        Edit(
            "connection/streams.py", "            self._gc_destroy = before\n", "            pass\n"
        ),
    ),
    # -- the accepting side, and probes
    "an accepted connection is closed before what has come is read": (
        Edit(
            "connection/accepted.py",
            "waits = reader.starving and not _readable(transport)",
            "waits = reader.starving",
        ),
    ),
    "an accepted connection is closed while its reply is written": (
        Edit(
            "connection/accepted.py",
            "if not waits or transport.get_write_buffer_size():",
            "if not waits:",
        ),
    ),
    "an accepted connection never has a whole frame": (
        Edit(
            "connection/frames.py", "            self.reader.frame_ends()\n", "            pass\n"
        ),
    ),
    "an accepted connection is told to have been closed by its peer, whoever did": (
        Edit("connection/accepted.py", "each.why or why,", "why,"),
    ),
    "an accepted connection is in the history of who is only looked at": (
        Edit("connection/accepted.py", " and not is_question(message)", ""),
    ),
    "an accepted connection is busy for ever": (
        Edit(
            "connection/accepted.py",
            "each.requests.pop(id(message), None) is None",
            "each.requests.get(id(message)) is None",
        ),
    ),
    "an accepted connection is counted by a child, too": (
        Edit("connection/accepted.py", '        accepted.give_up("fork")\n', ""),
    ),
    "changes: anybody is answered": (
        Edit(
            "side_channel.py",
            "return None if peer is None or peer[1] == os.geteuid() else peer",
            "return None",
        ),
    ),
    "changes: half a question is carried out": (
        Edit("side_channel.py", "line.decode() if end else None", "line.decode()"),
    ),
    "changes: what somebody wanted who has gone is done": (
        Edit("side_channel.py", " and not _has_gone(connection)", ""),
    ),
    "changes: a secret is logged": (
        Edit("changes.py", "getattr(settings.without_secrets(), name)", "getattr(settings, name)"),
    ),
    "closing: what is in use is closed at once": (
        Edit("connection/closing.py", "        if now:\n", "        if True:\n"),
    ),
    "closing: a message that comes just now is cut off": (
        Edit(
            "connection/accepted.py",
            "return reader.starving and not reader.unfinished and not _readable(transport)",
            "return True",
        ),
    ),
    "journal: what repeats fills it": (
        Edit("connection/history.py", "if kind not in REPEATED:", "if True:"),
    ),
    "journal: an earlier entry takes the place of a later one": (
        Edit("journal.py", "if there is None or there.sequence < entry.sequence:", "if True:"),
    ),
    "underway: a loop that stands still is running": (
        Edit("connection/loops.py", "_sign.came.is_set() or silent < ", "_sign.asked and 0 < "),
    ),
    "underway: what is held is not under way": (
        Edit("connection/underway.py", "in caller._holding.waiting():", "in ():"),
    ),
    "tally: what threads have counted goes with them": (
        Edit("connection/tally.py", "            each[1].merge_into(_gone)\n", ""),
    ),
    "tally: all methods are told apart": (
        Edit("connection/tally.py", "or len(_methods) < MOST_METHODS", "or True"),
    ),
    "tally: a caller that is there is taken for gone": (
        Edit(
            "connection/tally.py",
            "if each[0]() is None]:\n            _tallies.remove(each)",
            "]:\n            _tallies.remove(each)",
        ),
    ),
    "tally: what we ask ourselves is a call": (
        Edit("connection/client.py", "0.0 if ours else self._owner.clock()", "self._owner.clock()"),
    ),
    "a probe fails requests that are younger than it": (
        Edit(
            "connection/client.py",
            "        if self._requests.keys() - {",
            "        if False and {",
        ),
    ),
    # -- a fork
    "a child closes its parent's socket": (
        Edit(
            "connection/transports.py",
            "        _let_go(client.channel.writer.transport)\n",
            "        client.channel.writer.transport.abort()\n",
        ),
    ),
    "a child says goodbye for its parent": (
        Edit(
            "connection/transports.py",
            "        _let_go(client.channel.writer.transport)\n",
            '        client.channel.writer.get_extra_info("socket").shutdown(2)\n'
            "        _let_go(client.channel.writer.transport)\n",
        ),
    ),
    "a child keeps its parent's sockets": (
        Edit("connection/registry.py", "            caller.disown()\n", ""),
    ),
    "a child keeps what its parent is connecting": (
        Edit("connection/registry.py", "    routing.disown_loose()\n", ""),
    ),
    # -- imports
    "half a module is built upon": (
        Edit(
            "import_hook.py",
            "            return bool(self._depths)\n",
            "            return False\n",
        ),
    ),
    # -- threads
    "a loop that has moved is not followed": (
        Edit(
            "connection/caller.py",
            "        self.thread = get_ident()\n        return True\n",
            "        return False\n",
        ),
    ),
    "a loop enters the context of another": (
        Edit(
            "connection/caller.py",
            "        self.context = contextvars.Context()\n",
            "        self.context = caps.process.__dict__.setdefault('x', contextvars.Context())\n",
        ),
    ),
    "a loop that runs on leaves who waits on what was severed": (
        Edit("connection/caller.py", "            client.wind_up()\n", "            pass\n"),
    ),
    "a loop that starts tasks at once starts ours": (
        Edit(
            "periodic.py",
            "    return asyncio.Task(work, loop=loop)\n",
            "    return loop.create_task(work)\n",
        ),
    ),
    "a lock is waited for by the thread that holds it": (
        Edit(
            "locks.py",
            "    made = threading.RLock()\n",
            "    made = threading.Lock()\n",
        ),
    ),
    "another loop is not asked to make room": (
        Edit(
            "connection/cap.py",
            "await self._ask_next(others, until)\n            else",
            "others.pop()\n            else",
        ),
    ),
    # -- supervision
    "health: a bound that is passed a moment later": (
        Edit("supervision/health.py", "    if silent >= SILENT:\n", "    if silent > SILENT:\n"),
    ),
    "health: what hangs is busy": (
        Edit(
            "supervision/health.py",
            "        if loop_silent >= hang_timeout:\n",
            "        if False:\n",
        ),
    ),
    "evidence: another cgroup's kill counts": (
        Edit("supervision/evidence.py", "    if rise is None:\n", "    if not rise:\n"),
    ),
    "page: a request that has ended stays": (
        Edit(
            "supervision/page.py",
            "            _SINCE.pack_into(self._map, _SLOTS_AT + slot * _SLOT_SIZE, 0.0)\n",
            "            pass\n",
        ),
    ),
    "overlap: what was planned for one that is left alone stays so": (
        Edit(
            "supervision/recovery.py",
            "        self._forget_timer(lineage)\n        lineage.try_at = None\n",
            "        lineage.try_at = None\n",
        ),
    ),
    "overlap: a word stays in the page of who is handed over": (
        Edit("supervision/subpool.py", "draining=0, recreating=0", "rss=0"),
    ),
    "recovery: it hides another death": (
        Edit(
            "supervision/supervisor.py",
            "        if is_current:\n            self.recovery.lost(lineage)\n",
            "        if is_current and self.recovery.at_work is None:\n"
            "            self.recovery.lost(lineage)\n",
        ),
    ),
    "recovery: one that fails is not tried again": (
        Edit(
            "supervision/recovery.py",
            "                self._plan(lineage, why, again=True)\n            return",
            "                pass\n            return",
        ),
    ),
    "crash: an end that was asked for is one": (
        Edit("supervision/supervisor.py", "        if not requested:\n", "        if True:\n"),
    ),
    "crash: its class is not known elsewhere": (
        Edit(
            "supervision/crash.py",
            "            exc_type = _AsCauseBase\n",
            "            pass\n",
        ),
    ),
    "crash: one copy for all who wait": (
        Edit(
            "connection/client.py",
            "            self._fail(reply, copy_error(error))\n",
            "            self._fail(reply, error)\n",
        ),
    ),
    # -- over HTTP
    "access: a page of another site reads under a name of its own": (
        Edit(
            "http/access.py",
            "    if not authorized and not _is_known(asked.host, door):\n",
            "    if False:\n",
        ),
    ),
    "access: a wrong token is as none": (
        Edit(
            "http/access.py",
            " and door.token is not None and not authorized:\n",
            " and False:\n",
        ),
    ),
    "access: a page of another site that has the token steers": (
        Edit(
            "http/access.py",
            "    if asked.origin is not None and not _is_same(asked.origin, asked.host):\n",
            "    if asked.origin and not authorized and not _is_same(asked.origin, asked.host):\n",
        ),
    ),
    "access: the beginning of the token is enough": (
        Edit(
            "http/access.py",
            "hmac.compare_digest(ours, theirs)",
            "ours.startswith(theirs) and theirs != b''",
        ),
    ),
    "access: whoever reaches it reads": (
        Edit(
            "http/access.py",
            "    if asked.method not in READING or not door.is_local:\n",
            "    if asked.method not in READING:\n",
        ),
    ),
    "stream: a gap is not told": (
        Edit("http/stream.py", "                if missed:\n", "                if False:\n"),
    ),
    "stream: it ends with its server alone": (
        Edit(
            "http/stream.py",
            "            self._waiting.discard(woken)\n",
            "            pass\n",
        ),
    ),
    "stream: of another process one is told what comes": (
        Edit(
            "journal.py",
            "        return (number if known else 0), known\n",
            "        return (number if known else self._last), known\n",
        ),
    ),
    "serving: who does not read keeps the stream": (
        Edit(
            "http/server.py",
            "        if self._reads is None:\n",
            "        if False:\n",
        ),
    ),
    "serving: a request may take for ever": (
        Edit(
            "http/server.py",
            "        if self.is_incomplete or self.transport.is_closing():\n",
            "        if self.transport.is_closing():\n",
        ),
    ),
    "serving: a sub-pool does, too": (Edit("http/lifecycle.py", " or beat.is_subpool()", ""),),
    # -- files, and the end of the process
    "a file of another host is stale": (
        Edit(
            "supervision/sentinels.py",
            "        return age > FOREIGN\n    if boot_id",
            "        return True\n    if boot_id",
        ),
    ),
    "a file of a later process of that number is not": (
        Edit(
            "supervision/sentinels.py",
            '        return not abs(created - owner(pid)["created"]) <= SAME',
            "        return not owner(pid)",
        ),
    ),
    "leaving: nothing is told before": (
        Edit(
            "supervision/leaving.py",
            "        tell()\n        sentinels.freeze()\n",
            "        sentinels.freeze()\n",
        ),
    ),
    "a watchdog is fed by a thread": (
        Edit(
            "supervision/watchdog.py",
            "        if self._awaited:\n            return\n",
            "        if self._awaited:\n            self._send()\n            return\n",
        ),
    ),
}

NEED = {
    "wall clock": CLOCK,
    "a child ": FORK,
    "a lock ": LOCK,
    "another loop ": OTHER_LOOP,
    "a deadline ": ("tests/connection/test_deadlines.py",),
    "an accepted ": ("tests/connection/test_accepted.py",),
    "changes: ": ("tests/test_changes.py", "tests/test_side_channel.py"),
    "closing: ": ("tests/connection/test_closing.py",),
    "journal: ": ("tests/test_journal.py", "tests/connection/test_history.py"),
    "underway: ": ("tests/connection/test_underway.py",),
    "tally: ": ("tests/connection/test_tally.py",),
    "a probe ": ("tests/connection/test_probe.py",),
    "holding: ": ("tests/connection/test_holding.py",),
    "a generator ": ("tests/connection/test_streams.py",),
    "overlap: ": ("tests/supervision/test_overlaps.py",),
    "a loop ": ("tests/connection/test_loops.py",),
    "half a module ": ("tests/test_imports.py",),
    "health: ": ("tests/supervision/test_health.py",),
    "evidence: ": ("tests/supervision/test_evidence.py",),
    "page: ": ("tests/supervision/test_page.py",),
    "access: ": ("tests/http/test_access.py",),
    "stream: ": ("tests/http/test_stream.py",),
    "serving: ": ("tests/http/test_server.py",),
    "a file ": ("tests/supervision/test_sentinels.py",),
    "leaving: ": ("tests/supervision/test_leaving.py",),
    "a watchdog ": ("tests/supervision/test_watchdog.py",),
    "recovery: ": tuple(
        f"tests/supervision/test_recovery.py::test_{name}"
        for name in ("a_death_while_another_recovers", "a_recovery_that_fails_twice")
    ),
    "crash: ": tuple(
        f"tests/supervision/test_crashes.py::test_{name}"
        for name in (
            "a_caller_without_the_package",
            "every_waiter_has_an_error_of_its_own",
            "a_main_pool_that_stops",
            "one_that_is_removed",
        )
    ),
}
"""What finds mutants beside the tests in virtual time, by the beginning of their names."""


def mutated(edits: tuple[Edit, ...]) -> dict[str, str]:
    """The files that ``edits`` change, with their new source, which is Python."""
    sources: dict[str, str] = {}
    for edit in edits:
        source = sources.get(edit.file) or (ROOT / "xoscar_idle" / edit.file).read_text()
        assert source.count(edit.old) == 1, edit
        sources[edit.file] = source.replace(edit.old, edit.new)
    for file, source in sources.items():
        compile(source, file, "exec")
    return sources


def found_by(name: str, edits: tuple[Edit, ...]) -> str | None:
    """The first test that fails with ``edits``; None if all pass."""
    with tempfile.TemporaryDirectory(prefix="xoscar-idle-mutant-") as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for each in ("xoscar_idle", "tests"):
            shutil.copytree(ROOT / each, copy / each, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for file, source in mutated(edits).items():
            (copy / "xoscar_idle" / file).write_text(source)
        # Tests that have to be ended leave their temporary files behind.
        env = environment(PYTHONPATH=folder, TMPDIR=folder, XOSCAR_IDLE_NO_SHRINK="1")
        where = "import os, xoscar_idle; print(os.path.realpath(xoscar_idle.__file__))"
        imported = run(sys.executable, "-c", where, cwd=copy, env=env).stdout.strip()
        if copy.resolve() not in Path(imported).parents:
            raise SystemExit(f"not the copy is imported, but {imported}")
        tests = next((need for start, need in NEED.items() if name.startswith(start)), ())
        command = (sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider")
        options = ("-o", "timeout=30", *(tests or IN_VIRTUAL_TIME))
        try:
            done = run(*command, *options, status=None, timeout=LIMIT, cwd=copy, env=env)
        except subprocess.TimeoutExpired:
            return "not ending"
        if done.returncode not in (0, 1):
            # A timeout of pytest-timeout ends the whole run.
            if "Timeout" in done.stdout + done.stderr:
                return "not ending"
            raise SystemExit(f"{name}: the tests could not run\n{done.stdout}{done.stderr}")
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
        return failed[1] if failed else None


def main(wanted: list[str]) -> int:
    chosen = {n: e for n, e in MUTANTS.items() if not wanted or n in wanted}
    if set(wanted) - set(chosen):
        raise SystemExit(f"no such mutant: {', '.join(set(wanted) - set(chosen))}")
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sound = pool.submit(found_by, "no fault", ())
        outcomes = dict(zip(chosen, pool.map(found_by, chosen, chosen.values()), strict=True))
    if (broken := sound.result()) is not None:
        raise SystemExit(f"without any fault, {broken} fails")
    width = max(map(len, outcomes))
    for name, test in outcomes.items():
        print(f"{name:{width}}  {f'caught by {test}' if test else 'NOT CAUGHT'}")
    survivors = [name for name, test in outcomes.items() if test is None]
    caught = len(outcomes) - len(survivors)
    print(f"{caught} of {len(outcomes)} caught in {time.monotonic() - started:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
