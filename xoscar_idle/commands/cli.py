"""The command ``xoscar-idle``."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from .. import __version__
from ..config import Settings, as_variable
from ..gate import IDLE_TIMEOUT
from ..supervision.instructions import INSTRUCTIONS
from ..values import is_off

if TYPE_CHECKING:
    from ..telemetry.targets import Target


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Close the idle connections of xoscar programs, and see what they do."""
    from .. import startup

    startup.disarm()  # it looks at others: its own process offers no monitor, and warns of nothing


def _parse_targets(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Target, ...]:
    return _named(parameter, values)


def _parse_main(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> Target | None:
    return None if value is None else _parse_targets(context, parameter, (value,))[0]


def _finite(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):  # no comparison of a range refuses nan
        raise click.BadParameter(f"{value} is not a number of seconds.")
    return value


def _parse_sources(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Target, ...]:
    return _named(parameter, values, urls=True)


def _named(
    parameter: click.Parameter, values: tuple[str, ...], urls: bool = False
) -> tuple[Target, ...]:
    """What patterns, files and wildcards name; a parameter that takes one gets no more."""
    from ..telemetry.targets import named

    try:
        found = tuple(named(values, urls))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if parameter.nargs == 1 and len(found) != 1:
        raise click.BadParameter(f"{values[0]!r} names {len(found)}, and it takes one.")
    return found


_targets = click.argument(
    "targets", nargs=-1, metavar="[PID | POOL_ADDRESS | @FILE]...", callback=_parse_targets
)
_sources = click.argument(
    "targets", nargs=-1, metavar="[PID | POOL_ADDRESS | URL | @FILE]...", callback=_parse_sources
)


def _parse_pinged(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    found = _named(parameter, values)
    for each in found:
        if isinstance(each, int):
            raise click.BadParameter(f"{each} is a process id: give the HOST:PORT of its pool.")
    return tuple(map(str, found))


@main.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--idle-timeout",
    metavar="SECONDS",
    help=f"Close a connection after this long without a request in flight; off: leave xoscar as it "
    f"is [default: {IDLE_TIMEOUT} of the environment, else {Settings.idle_timeout:g}].",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(idle_timeout: str | None, command: tuple[str, ...]) -> None:
    """Run COMMAND with idle closing active in each of its Python processes.

    It is active in processes whose interpreter has xoscar-idle installed; others run unchanged.

    Example: xoscar-idle run --idle-timeout 20 -- python serve.py --port 9000
    """
    chosen = os.environ.get(IDLE_TIMEOUT, "") if idle_timeout is None else idle_timeout
    if is_off(chosen):
        os.environ[IDLE_TIMEOUT] = chosen
        click.echo(f"xoscar-idle: runs without idle closing: {IDLE_TIMEOUT} is off", err=True)
    elif idle_timeout is not None:
        try:
            os.environ[IDLE_TIMEOUT] = as_variable("idle_timeout", idle_timeout) or ""
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--idle-timeout") from None
    elif not chosen.strip():
        os.environ[IDLE_TIMEOUT] = f"{Settings.idle_timeout:g}"
    try:
        os.execvp(command[0], command)
    except OSError as error:
        click.echo(f"xoscar-idle: {command[0]} cannot be run: {error.strerror}", err=True)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


@main.command()
@click.option("--endpoints", default=300, show_default=True, help="How many pools to visit.")
@click.option("--seconds", default=24.0, show_default=True, help="How long to visit them.")
@click.option("--idle-timeout", default=2.0, show_default=True, help="Of the reaping client.")
def demo(endpoints: int, seconds: float, idle_timeout: float) -> None:
    """Show stock xoscar beside xoscar with idle closing, and with supervision, on real pools."""
    from .demo.show import demo as run_demo

    try:
        sys.exit(run_demo(endpoints=endpoints, seconds=seconds, idle_timeout=idle_timeout))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@main.command()
@_targets
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with more details.")
def doctor(targets: tuple[Target, ...], as_json: bool) -> None:
    """Tell whether idle closing is active, and why not.

    \b
    (none)        In this environment. It starts a new process of the Python that
                  xoscar-idle is installed for, with the environment it is called
                  in, and looks whether importing xoscar there activates. So call
                  it as the program is called: in its container, with its
                  variables.
    PID           In that process. It can be asked if it was started with
                  XOSCAR_IDLE_MONITOR=1; of others you see what they were started
                  with, no more.
    POOL_ADDRESS  In each process of that pool.

    \b
    Exit status:
      0  active, and nothing is wrong; of processes that run: all are active
      1  not active, also when simply neither XOSCAR_IDLE_TIMEOUT nor
         XOSCAR_SUPERVISE is set ("asked_for" in the JSON tells that apart); or
         something is to be mended: a bad or misspelt setting, no .pth file, a
         xoscar that is not supported; of processes that run: one is not active,
         or it is not known whether it is

    Example: xoscar-idle doctor 127.0.0.1:9999
    """
    if targets:
        from .running import doctor as run_doctor_of

        sys.exit(run_doctor_of(targets, as_json))
    from .doctor import doctor as run_doctor

    sys.exit(run_doctor(as_json))


@main.command()
@_targets
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    callback=_finite,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print one page and end.")
@click.option(
    "--view",
    type=click.Choice(["processes", "connections", "peers", "accepted"]),
    default="processes",
    show_default=True,
    help="What to begin with.",
)
@click.option(
    "--sort",
    default="",
    metavar="COLUMN",
    help="Numbers from the largest, text from A; --sort=-COLUMN the other way round.",
)
@click.option("--filter", "text", default="", metavar="TEXT", help="Only rows with it in a cell.")
def top(
    targets: tuple[Target, ...], interval: float, once: bool, view: str, sort: str, text: str
) -> None:
    """Show processes and their connections, live; q or Ctrl-C ends it, and h shows the keys.

    They change the view, sort, filter and scroll. Into a pipe or a file it writes plain text, one
    page after the other.

    \b
    PID           A process of this machine. Started with XOSCAR_IDLE_MONITOR=1 it
                  tells of its connections, to its own user only; of others you
                  see what the kernel shows.
    POOL_ADDRESS  host:port of a running pool: all its processes are asked over
                  xoscar, wherever they run, and nothing is left behind there.
                  Patterns name many: 'gpu[01-16]:9000', 'node{a,b}:9000'.
    @FILE         One of these per line; @- is the standard input. With wildcards
                  beside it, only what these match: @hosts 'gpu*:9000'
    (none)        All processes of this user started with XOSCAR_IDLE_MONITOR=1.

    \b
    Columns of processes:
      STATE               active; inactive: not extended; unmonitored: seen from
                          outside; blocked: it does not answer; foreign: another
                          user's; gone
      OPEN, ACTIVE, IDLE  connections that are open; in use; used by nobody. Where
                          only the kernel was asked, it is not known which are
      CONN                connects under way
      REQS                requests that wait for their reply
      ACC                 accepted connections that are open
      OPENED, CLOSED      so far
      OPEN/s, CLOSE/s     per second, since the look before
      CALLS/s             calls per second
      FDS                 descriptors in use / the limit

    \b
    Columns of connections; of peers they are those of all processes together:
      STATE               active, idle, or retired: takes no new calls
      CALLS, AGE, IDLE    requests so far; since opened; since last used
      FD                  the number of its descriptor
      PROCESSES           how many hold some to that peer
      RETIRED             how many are

    \b
    Columns of accepted connections; of hosts, and of processes that are known:
      FROM, POOLS         who has connected; to how many pools
      TO                  the own address
      STATE               active: a request is in process; or idle
      REQS, REQUESTS      requests in process; so far

    Behind an address is, where it is known, whose it is: the PID, the number of the sub-pool, its
    label and its actors. Columns for which a narrow terminal has no room are left out.

    \b
    Exit status:
      0  all are seen; also after q and Ctrl-C
      1  one that is named is gone, foreign or does not exist; while it is live,
         only if there is nothing else to see
      2  asked wrongly
      3  one is blocked, whatever else; after q and Ctrl-C it is 0

    Example: xoscar-idle top --view peers --sort calls 127.0.0.1:9999
    """
    from .top import top as run_top

    sys.exit(run_top(targets, interval, once, view, sort, text))


def _finite_if_given(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    return None if value is None else _finite(context, parameter, value)


@main.command()
@_targets
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of processes.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.1),
    metavar="SECONDS",
    callback=_finite_if_given,
    help="Again and again, so often; Ctrl-C ends it. With --json all on one line.",
)
@click.option("--by-peer", is_flag=True, help="Who is connected to whom, added up.")
def stats(targets: tuple[Target, ...], as_json: bool, watch: float | None, by_peer: bool) -> None:
    """Print what there is to know of processes and their connections.

    What can be named is that of "xoscar-idle top"; without any, all processes of this user that
    were started with XOSCAR_IDLE_MONITOR=1. The JSON lists each connection, opened or accepted,
    too; its "status" is the STATE of "top".

    \b
    Exit status:
      0  all are seen; also after Ctrl-C
      1  one that is named is gone, foreign or does not exist
      2  asked wrongly
      3  one is blocked, whatever else

    Example: xoscar-idle stats --json 1234 | jq '.[].statistics.closed'
    """
    from .stats import stats as run_stats

    sys.exit(run_stats(targets, as_json, watch, by_peer))


@main.command()
@_targets
@click.option(
    "--min-age",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    callback=_finite,
    help="Only calls that are under way for so long.",
)
@click.option("--filter", "text", default="", metavar="TEXT", help="Only rows with it in a cell.")
@click.option("--full", is_flag=True, help="Show stacks to their ends.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of processes.")
def calls(
    targets: tuple[Target, ...], min_age: float, text: str, full: bool, as_json: bool
) -> None:
    """Tell which calls are under way, the oldest first, and what blocked processes do.

    \b
    PID           A process of this machine and of this user, started with
                  XOSCAR_IDLE_MONITOR=1. It answers while its loop is blocked.
    POOL_ADDRESS  host:port of any process of a pool: all its processes are
                  asked over xoscar, wherever they run. One that does not answer
                  is asked as a PID is, if it is of this machine; of one that does
                  not answer that either, its main pool tells what it knows.
    @FILE         One of these per line; patterns are those of "xoscar-idle top".
    (none)        All processes of this user started with XOSCAR_IDLE_MONITOR=1.

    \b
    Columns:
      AGE           how long it has been so
      PID           the process that tells it
      SIDE          calling, or accepting: a call of another process
      PEER          the other side, and whose it is, where that is known
      ACTOR, METHOD what is called; in parentheses what is no method of an actor
      STATE         in flight: its reply is waited for; held: it waits for a pool
                    to be recovered; connecting: so many calls wait for a
                    connection; in process: at the accepting side

    A call between processes has two rows, one of each side. Calls to actors of the same process are
    awaited by xoscar directly and are not seen. An event loop that gives no sign for a quarter of a
    second is blocked: what its thread does is shown below.

    \b
    Exit status:
      0  all tell, and none is blocked
      1  one could not be asked
      2  asked wrongly
      3  one is blocked, whatever else

    Example: xoscar-idle calls --min-age 60 127.0.0.1:9999
    """
    from .calls import Wanted
    from .calls import calls as run_calls

    sys.exit(run_calls(targets, Wanted(min_age, text), as_json, full))


@main.command()
@click.argument(
    "addresses",
    nargs=-1,
    required=True,
    metavar="[HOST:PORT | @FILE]...",
    callback=_parse_pinged,
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    callback=_finite,
    help="Seconds for connecting and the answer, each time.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How often to ask, each time on a new connection.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print nothing of those that answer.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list, of each time.")
def ping(
    addresses: tuple[str, ...], timeout: float, count: int, quiet: bool, as_json: bool
) -> None:
    """Ask pools for a sign of life, all at once, and tell how long it took.

    It is a probe that Kubernetes can exec in the container of a pool:

    \b
      exec: {command: [xoscar-idle, ping, --quiet, "127.0.0.1:9000"]}

    Its timeoutSeconds is to be longer than --timeout, by the second or two that Python takes to
    start. A pool in which a long synchronous method runs gives no sign of life meanwhile, nor does
    one that waits for a GPU: as a liveness probe it would have such a pool restarted, unless its
    failureThreshold covers the longest of these.

    It takes patterns as "xoscar-idle top" does; any process of a pool answers for itself alone.
    xoscar-idle need not be active there.

    \b
    Exit status:
      0  all have answered, each time
      1  one has not: it is refused, has timed out or is no pool, as stderr tells
      2  asked wrongly

    Example: xoscar-idle ping --timeout 2 127.0.0.1:9000
    """
    from .ping import ping as run_ping

    sys.exit(run_ping(addresses, timeout, count, quiet, as_json))


@main.command()
@_sources
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of sub-pools.")
def pools(targets: tuple[Target, ...], as_json: bool) -> None:
    """Tell how the sub-pools of main pools are, and why one is not well.

    \b
    PID           A process with a main pool, of this user, started with
                  XOSCAR_IDLE_MONITOR=1. It answers while its loop is blocked.
    POOL_ADDRESS  host:port of a main pool or of one of its sub-pools; the main
                  pool is asked over xoscar, wherever it runs.
    URL           http://host:port or the path of a unix socket: its
                  XOSCAR_HEALTH_ADDRESS, asked with the XOSCAR_HEALTH_TOKEN of
                  this environment. It answers while its loop is blocked.
    (none)        All processes of this user started with XOSCAR_IDLE_MONITOR=1.

    \b
    Columns:
      POOL        its number: what replaces a process has the same
      STATE       starting, healthy, busy (its event loop does not answer),
                  unhealthy (nothing of it does), recovering, degraded (it failed
                  too often, and is left alone for a while), dead, paused, or
                  stopping
      SINCE, UP   in this state; since its process was started
      RESTARTS    so far
      REQ, OLDEST requests in process; for how long the oldest of them
      HELD        calls that wait for its recovery
      LAG         how long its event loop took to answer, or has not answered
      RSS         resident memory

    Columns for which a narrow terminal has no room are left out. Health is followed where
    XOSCAR_SUPERVISE is set to observe or act; elsewhere a sub-pool is healthy while its process
    lives.

    \b
    Exit status:
      0  all sub-pools are healthy or starting
      1  of what is named, something could not be asked
      3  a sub-pool is neither healthy nor starting, whatever else

    Example: xoscar-idle pools 127.0.0.1:9999
    """
    from .pools import pools as run_pools

    sys.exit(run_pools(targets, as_json))


@main.command()
@click.argument("instruction", type=click.Choice([*INSTRUCTIONS]), metavar="INSTRUCTION")
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--main",
    "main_pool",
    callback=_parse_main,
    metavar="PID|POOL_ADDRESS",
    help="Its main pool.",
)
@click.option("--drain", type=float, metavar="SECONDS", help="For requests in process; 30.")
@click.option(
    "--expect-incarnation", type=int, metavar="N", help="Refuse it where another one is there."
)
@click.option("--request-id", metavar="ID", help="The same one again is the same request.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of it as JSON.")
def apply(
    instruction: str, address: str, main_pool: Target | None, as_json: bool, **given: object
) -> None:
    """Have the main pool of the sub-pool at ADDRESS do something about it, and wait for that.

    Its process has to run with XOSCAR_SUPERVISE=act. It is found among those of this user that
    were started with XOSCAR_IDLE_MONITOR=1, and else asked for over xoscar; of a sub-pool that is
    down and of another host, --main has to name it.

    \b
    INSTRUCTION
      pause       leave it alone: neither end it when it hangs nor recover it
      resume      supervise it again
      restart     replace its process, when the requests in process have ended;
                  those that come meanwhile wait (XOSCAR_RECOVERY_TIMEOUT)
      retry       recover it now, if it is down, whatever is planned
      give_up     end it, and do not recover it
      reset       forget its failures, and recover it if it is down

    \b
    Exit status:
      0  it has succeeded, which has been seen
      1  it has failed
      2  it was refused, or nobody answers; nothing has been done

    Example: xoscar-idle apply restart 127.0.0.1:41235
    """
    from .apply import apply as run_apply

    fields = {name: value for name, value in given.items() if value is not None}
    fields |= {"instruction": instruction, "address": address}
    sys.exit(run_apply(fields, main_pool, as_json))


@main.command()
@click.argument(
    "arguments", nargs=-1, metavar="[PID | POOL_ADDRESS | @FILE]... NAME=VALUE [NAME=VALUE]..."
)
@click.option("--all", "everything", is_flag=True, help="Of all that offer a monitor.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of processes.")
def configure(arguments: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Change settings of processes of this machine while they run.

    They are asked over the local socket of XOSCAR_IDLE_MONITOR, as their own user, and tell what
    has changed, also while their event loops are blocked. It holds at once, for the connections
    that are open, too, and for processes that they start from then on; it ends with the process.

    \b
    PID           A process started with XOSCAR_IDLE_MONITOR=1.
    POOL_ADDRESS  host:port of a pool of this machine: all its processes.
    @FILE         One of these per line; patterns are those of "xoscar-idle top".
    NAME=VALUE    A setting, by its name or by that of its variable, with the
                  values of the variable: idle_timeout=10,
                  XOSCAR_MAX_CONNECTIONS=auto. No value: its default.
    log=LEVEL     What of its log is written to stderr: debug, info, warning,
                  error or off.

    All of it is changed in a process, or nothing, and the error says why.

    \b
    Exit status:
      0  all processes have changed it
      1  one has not
      2  asked wrongly; nothing has been changed

    Example: xoscar-idle configure 4711 4712 idle_timeout=10 log=debug
    """
    from .changing import configure as run_configure

    try:
        sys.exit(run_configure(arguments, everything, as_json))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@main.command()
@click.argument(
    "arguments", nargs=-1, required=True, metavar="[PID | POOL_ADDRESS | @FILE]... PEER"
)
@click.option("--now", is_flag=True, help="Those in use, too: calls in flight fail.")
@click.option("--accepted", "those_accepted", is_flag=True, help="What pools have accepted.")
@click.option("--all", "everything", is_flag=True, help="Of all that offer a monitor.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of processes.")
def close(
    arguments: tuple[str, ...], now: bool, those_accepted: bool, everything: bool, as_json: bool
) -> None:
    """Close connections of processes of this machine to a peer.

    What is idle is closed at once. What is in use takes no new calls, and closes after those in
    flight, none of which is lost. The next call to the peer opens a new connection.

    \b
    PID, POOL_ADDRESS, @FILE
                  As in "xoscar-idle configure".
    PEER          The address of a pool, as calls know it, or the route to it;
                  * and ? stand for any text and character: '10.0.0.*:*', '*'.
    --now         Close what is in use, too: calls in flight raise ServerClosed.
    --accepted    Close what pools of the process have accepted, instead: from
                  this host:port, or from 'pid 4711' over a unix socket. What has
                  a request in process is closed after it. A request on its way
                  is lost: let clients close, where you can.

    \b
    Exit status:
      0  it is done, and what is in use is draining
      1  one could not, or none has such a peer; or an event loop is blocked, and
         does it when it runs again
      2  asked wrongly; nothing has been closed

    Example: xoscar-idle close 4711 '10.0.0.7:*'
    """
    from .changing import close as run_close

    try:
        sys.exit(run_close(arguments, everything, now, those_accepted, as_json))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _parse_kinds(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    from .events import KINDS_OF

    known = [kind for kinds in KINDS_OF.values() for kind in kinds]
    found = tuple(each.lower().replace("-", " ") for each in values)
    for given, kind in zip(values, found, strict=True):
        if kind not in known:
            names = ", ".join(each.replace(" ", "-") for each in known)
            raise click.BadParameter(f"{given!r} is none of {names}.")
    return found


@main.command()
@_sources
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens; Ctrl-C ends it.")
@click.option("--since", metavar="TIME", help="Only what has happened from then on.")
@click.option("--until", metavar="TIME", help="Only what had happened by then.")
@click.option("--peer", metavar="GLOB", help="Only with these: '10.0.0.7:*'; sub-pools: at these.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    callback=_parse_kinds,
    help="Only of this kind; several times: of these.",
)
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Only the last N of it.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
def events(
    targets: tuple[Target, ...],
    follow: bool,
    since: str | None,
    until: str | None,
    peer: str | None,
    kinds: tuple[str, ...],
    last: int | None,
    as_json: bool,
) -> None:
    """Tell what has happened to connections and to sub-pools, as far as processes remember.

    \b
    PID           A process of this machine and of this user, started with
                  XOSCAR_IDLE_MONITOR=1. It answers while its loop is blocked.
    POOL_ADDRESS  host:port of any process of a pool: all its processes are
                  asked over xoscar, wherever they run; those of this machine
                  that are blocked, over the side channel.
    URL           As for "xoscar-idle pools"; it tells of sub-pools alone.
    (none)        All processes of this user started with XOSCAR_IDLE_MONITOR=1.

    \b
    A line has:
      the local time
      the process, by its PID; of sub-pools, the main pool; at one URL: nothing
      the other side of the connection, or pool ADDRESS (NUMBER.PROCESS)
      what happened; of sub-pools: the state from then on, crash, instruction
      why; and how often, where it has repeated within a minute

    \b
    KIND
      opened, closed             a connection
      connect-failed             there was none
      cap-exceeded               XOSCAR_MAX_CONNECTIONS connections are in use
      deadline-missed            a call had no reply in time
      probe                      a peer was asked for a sign of life
      accepted, hung-up          a connection from elsewhere, and its end
      operator                   somebody has changed something
      state, crash, instruction  of sub-pools

    \b
    TIME
      3:12, 03:12:30    the last such time that is not in the future
      2026-05-01T03:12  a date, which may have an offset like Z or +02:00
      90s, 10m, 2h, 1d  so long ago

    A process remembers the last XOSCAR_HISTORY of its connections, by default 1000, and the last
    thousand of its sub-pools. What it has forgotten is said.

    Exit status: 1 if something could not be asked, else 0.

    Example: xoscar-idle events --since 3:10 --until 3:20 10.0.0.5:9000
    """
    from . import times
    from .events import Wanted
    from .events import events as run_events

    now = time.time()
    begin = _time("--since", since, lambda text: times.since(text, now))
    end = _time("--until", until, lambda text: times.until(text, now, after=begin))
    if follow and until is not None:
        raise click.UsageError("--follow goes on, and --until ends: give one of them.")
    if begin is not None and end is not None and end <= begin:
        raise click.UsageError(
            f"--until {until} is not after --since {since}: give a later one, or a date with it."
        )
    wanted = Wanted(
        -math.inf if begin is None else begin, math.inf if end is None else end, peer, kinds, last
    )
    sys.exit(run_events(targets, wanted, follow, as_json))


def _time(option: str, text: str | None, parse: Callable[[str], float]) -> float | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint=option) from None


@main.command()
@_targets
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of records.")
def crashes(targets: tuple[Target, ...], as_json: bool) -> None:
    """Show the crash records of this user on this machine, the newest last.

    They are written by main pools that run with XOSCAR_SUPERVISE=observe or act, to the directory
    that XOSCAR_SUPERVISE_DIR names, or else to one of the user's own.

    \b
    (none)        A table of all.
    PID, POOL_ADDRESS
                  Those of that sub-pool or of the sub-pools of that main pool,
                  in full: with stacks and the end of stderr.

    \b
    Columns:
      HOW         out of memory, the signal, or the exit code
      UP, REQ     how long it ran; requests that it had in process
      WHY         what else is known

    Exit status: 1 if a record cannot be read, or there is none of what is named; else 0.

    Example: xoscar-idle crashes --json | jq '.[-1].log_tail'
    """
    from .crashes import crashes as run_crashes

    sys.exit(run_crashes(targets, as_json))
