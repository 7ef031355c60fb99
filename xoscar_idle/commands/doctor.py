"""Finding out whether idle closing is active in this environment, and why it is not.

What decides is a new process of this interpreter, in this environment, that imports xoscar. The
rest explains.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import site
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil

from .. import (
    __version__,
    activation,
    config,
    descriptors,
    gate,
    logs,
    patching,
    side_channel,
    values,
)
from ..connection import keepalive
from ..supervision import records
from .spelling import meant

PTH = "xoscar_idle.pth"
PTH_LINE = (
    'import os; {"XOSCAR_IDLE_TIMEOUT", "XOSCAR_SUPERVISE"} & os.environ.keys() and '
    'exec("try: import xoscar_idle.startup\\nexcept Exception: pass")'
)

START_TIMEOUT = 60.0
"""Seconds that importing xoscar may take."""

WHERE = "in a new process of this Python"

OK, NOTE, PROBLEM = "ok", "note", "problem"

NEEDS = f"does nothing without {gate.IDLE_TIMEOUT} or {gate.SUPERVISE}, or install() in the program"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: str
    """``ok``; ``note``: worth knowing; ``problem``: to be mended."""
    text: str
    details: dict[str, Any] = field(default_factory=dict)


def doctor(as_json: bool) -> int:
    """Print what is found; the exit status: 0 if idle closing is active and nothing is wrong."""
    told = _start()
    checks = list(_checks(told))
    problems = [each for each in checks if each.level == PROBLEM]
    status = 1 if problems or not told["active"] else 0
    if as_json:
        report = {
            "active": told["active"],
            "asked_for": gate.wanted(),
            "status": status,
            "checks": [dataclasses.asdict(each) for each in checks],
        }
        click.echo(json.dumps(report, indent=2))
        return status
    for each in checks:
        click.echo(f"{each.level:7}  {each.name:17}  {each.text}")
    click.echo()
    if not told["active"]:
        click.echo(f"Not active {WHERE}: {_why_not(told, problems)}.")
    else:
        click.echo(f"Active {WHERE}{f', {len(problems)} to be mended' if problems else ''}.")
    click.echo("One that runs already: xoscar-idle doctor PID, or the address of its pool.")
    return status


def _why_not(told: dict[str, Any], problems: list[Check]) -> str:
    if not gate.wanted():
        return f"{patching.why_inactive()}; set one of them"
    return problems[0].text if problems else "see above"


# The new process


def report() -> None:
    """Print, as the new process, what became of xoscar here."""
    warnings: list[str] = []
    told: dict[str, Any] = {"active": False, "warnings": warnings}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            warnings.append(record.getMessage() + (f": {error!r}" if error else ""))

    logging.getLogger("xoscar_idle").addHandler(Collector(logging.WARNING))
    try:
        import xoscar  # noqa: F401

        told["active"] = patching.is_active()
        if not told["active"]:
            activation.check()
            config.Settings.from_environment()  # for its warnings
    except patching.UnsupportedXoscar as error:
        told["unsupported"] = str(error)
        with contextlib.suppress(ValueError):  # said by the activation that was tried, too
            warnings.remove(str(error))
    except Exception as error:
        told["failure"] = f"importing xoscar fails: {type(error).__name__}: {error}"
    told["settings"] = dataclasses.asdict(config.current().without_secrets())
    told["origins"] = config.origins()
    told["keepalive"] = config.current().keepalive
    print(json.dumps(told))


def _start() -> dict[str, Any]:
    """Start the new process; what it reports."""
    # What there is to say of these is said here, and the new process needs neither.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in (side_channel.MONITOR, logs.LOG)
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from xoscar_idle.commands.doctor import report; report()"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told
    except subprocess.TimeoutExpired:
        failure = f"{sys.executable} has not imported xoscar in {START_TIMEOUT:g} s"
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        failure = f"a new process failed with exit status {done.returncode}: {last}"
    return {"active": False, "failure": failure, "warnings": [], "settings": {}, "origins": {}}


# What is looked at


def _checks(told: dict[str, Any]) -> Iterator[Check]:
    python = platform.python_version()
    yield Check("python", OK, f"{python}, {sys.executable}", {"version": python})
    yield Check("xoscar-idle", OK, f"{__version__}, {Path(__file__).parent}")
    yield _xoscar(told)
    yield _pth()
    yield _asked_for()
    yield _settings(told)
    for warning in told["warnings"]:
        yield Check("setting", PROBLEM, warning)
    yield from _misspelt()
    yield from _user_timeout()
    yield _log()
    yield _monitor()
    yield _supervision(told["settings"])
    yield _http(told["settings"])
    yield _descriptors()
    yield _keepalive(told.get("keepalive", config.Settings().keepalive))
    yield _extra("prometheus_client", "metrics")
    if told["active"]:
        yield Check("active", OK, f"{WHERE} that imports xoscar")
    elif gate.wanted():
        yield Check("active", PROBLEM, f"not {WHERE}")
    else:
        yield Check("active", NOTE, "no, and not asked for")


def _xoscar(told: dict[str, Any]) -> Check:
    try:
        version = importlib.metadata.version("xoscar")
    except importlib.metadata.PackageNotFoundError:
        return Check("xoscar", PROBLEM, f"is not installed for {sys.executable}")
    details = {"version": version, "supported": str(patching.SUPPORTED)}
    for trouble in ("failure", "unsupported"):
        if trouble in told:
            return Check("xoscar", PROBLEM, told[trouble], details)
    return Check("xoscar", OK, f"{version}, supported ({patching.SUPPORTED})", details)


def _pth() -> Check:
    """Python runs the file in directories for packages, not wherever its path leads."""
    places = [*site.getsitepackages(), sysconfig.get_path("purelib")]
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    found = [path for place in dict.fromkeys(places) if (path := Path(place) / PTH).is_file()]
    if not found:
        return Check(
            PTH,
            PROBLEM,
            f"is not in {places[0]}: the variable alone activates nothing; "
            "install xoscar-idle with pip",
        )
    for path in found:
        try:
            intact = path.read_text().strip() == PTH_LINE
        except (OSError, UnicodeDecodeError):
            intact = False
        if not intact:
            return Check(PTH, PROBLEM, f"{path} has been changed: install xoscar-idle again")
    return Check(PTH, OK, ", ".join(map(str, found)), {"paths": list(map(str, found))})


def _asked_for() -> Check:
    raw = os.environ.get(gate.IDLE_TIMEOUT)
    if gate.idle_closing_wanted():
        return Check("asked for", OK, f"{gate.IDLE_TIMEOUT}={values.shown(raw)}")
    if gate.supervision_wanted():
        given = values.shown(os.environ[gate.SUPERVISE])
        return Check("asked for", OK, f"{gate.SUPERVISE}={given}, without idle closing")
    return Check("asked for", NOTE, f"{gate.IDLE_TIMEOUT} is {'not set' if raw is None else 'off'}")


def _settings(told: dict[str, Any]) -> Check:
    values, origins = told["settings"], told["origins"]
    given = [f"{name}={values[name]}" for name, origin in origins.items() if origin != "default"]
    text = f"{', '.join(given)}; all others by default" if given else "all by default"
    details = {
        name: {
            "value": value,
            "origin": origins[name],
            "variable": config.variable(name),
            "set": config.variable(name) in os.environ,
        }
        for name, value in values.items()
    }
    return Check("settings", OK, text, details)


def _misspelt() -> Iterator[Check]:
    known = [config.variable(each.name) for each in dataclasses.fields(config.Settings)]
    known += [side_channel.MONITOR, logs.LOG]
    for name in os.environ:
        if not name.upper().startswith("XOSCAR_") or name in known:
            continue
        likely = meant(name, known)
        if likely or name.startswith("XOSCAR_IDLE_"):
            hint = f": is {likely} meant?" if likely else ""
            yield Check("setting", PROBLEM, f"{name} is no setting{hint}")


def _log() -> Check:
    try:
        level = logs.wanted()
    except ValueError as error:
        return Check("log", PROBLEM, str(error))
    handlers = f"the handlers that the program has for the logger {logs.logger.name}"
    if level is None:
        text = f"to {handlers}; without any, warnings to stderr"
        return Check("log", OK, f"{text} ({logs.LOG}=info: all to stderr, too)", {"level": None})
    if not gate.wanted():
        return Check(
            "log",
            NOTE,
            f"{logs.LOG} {NEEDS}",
        )
    return Check("log", OK, f"from {level} on to stderr, and to {handlers}", {"level": level})


def _user_timeout() -> Iterator[Check]:
    """xoscar's own; it reads whatever is too large as it is, and no connect succeeds."""
    raw = os.environ.get("XOSCAR_TCP_USER_TIMEOUT")
    if raw and not values.whole(raw):
        yield Check(
            "setting",
            PROBLEM,
            f"XOSCAR_TCP_USER_TIMEOUT={values.shown(raw)} must be a whole number of milliseconds "
            f"from 1 to {values.MOST_CONNECTIONS}",
        )


def _monitor() -> Check:
    try:
        if not side_channel.wanted():
            return Check("monitor", OK, f"off ({side_channel.MONITOR}=1 lets top ask a process)")
    except ValueError as error:
        return Check("monitor", PROBLEM, str(error))
    if not side_channel.AVAILABLE:
        return Check("monitor", PROBLEM, "Python has no unix sockets on this platform")
    if not gate.wanted():
        return Check(
            "monitor",
            NOTE,
            f"{side_channel.MONITOR} {NEEDS}",
        )
    try:
        return Check("monitor", OK, f"sockets in {side_channel.directory()}")
    except OSError as error:
        return Check("monitor", PROBLEM, str(error))


def _supervision(settings: dict[str, Any]) -> Check:
    """Whether sub-pools are followed, and where what is known of their crashes is kept."""
    mode = settings.get("supervise", "off")
    if mode == "off":
        return Check(
            "supervision",
            OK,
            "off: errors tell what a sub-pool died of (XOSCAR_SUPERVISE=observe follows their "
            "health, too, and keeps records of crashes)",
            {"mode": mode},
        )
    try:
        place = records.directory()
    except (OSError, ValueError) as error:
        return Check("supervision", PROBLEM, f"{mode}, without crash records: {error}")
    more = "with the end of stderr" if settings.get("capture_stderr") else "without stderr"
    hang, held = settings.get("hang_timeout"), settings.get("recovery_timeout")
    told = "told" if mode == "observe" else "told and restarted"
    parts = [
        f"{mode}; crash records in {place}, {more}",
        f"what hangs is {told} after {hang:g} s"
        if hang
        else "what hangs is told by its state alone (XOSCAR_HANG_TIMEOUT is off)",
        f"calls wait for a recovery for {held:g} s"
        if held
        else "no call waits for a recovery (XOSCAR_RECOVERY_TIMEOUT is off)",
    ]
    if mode == "act":
        limit = settings.get("restart_limit")
        degraded = (
            "never degraded (XOSCAR_RESTART_LIMIT is off)"
            if limit == "off"
            else f"degraded after more failures than {limit} (XOSCAR_RESTART_LIMIT)"
        )
        parts.insert(1, degraded)
    return Check("supervision", OK, "; ".join(parts), {"mode": mode, "directory": str(place)})


def _http(settings: dict[str, Any]) -> Check:
    """Whether processes with main pools can be asked over HTTP, and by whom."""
    variable, address = config.variable("health_address"), settings.get("health_address")
    if address is None:
        if os.environ.get(variable, "").strip() and not gate.wanted():
            return Check("http", NOTE, f"{variable} {NEEDS}")
        return Check("http", OK, f"off ({variable}=127.0.0.1:9998 tells of pools over HTTP)")
    try:
        from ..http import server
    except ImportError as error:
        return Check(
            "http", PROBLEM, f"{variable}={address}: {error}: pip install 'xoscar-idle[http]'"
        )
    token, is_local = settings.get("health_token") is not None, server.is_local(address)
    if not (token or is_local):
        return Check(
            "http",
            PROBLEM,
            f"{variable}={address} is not of this machine alone, so "
            f"{config.variable('health_token')} must be set: nothing is told there",
        )
    steers = "who has the token steers"
    if not token:
        steers = f"nobody steers ({config.variable('health_token')} is not set)"
    reads = "all of this machine read" if is_local else "the token is needed to read"
    if address.startswith("/"):
        reads = "its own user reads"
    return Check("http", OK, f"{address}, for processes with main pools; {reads}, {steers}")


def _descriptors() -> Check:
    soft, hard = descriptors.limits()
    if soft is None:
        return Check("descriptors", OK, "no limit")
    used = descriptors.count(psutil.Process())
    details: dict[str, Any] = {"soft": soft, "hard": hard, "used_here": used}
    bound = "without a hard limit" if hard is None else f"at most {hard}"
    text = f"{soft} per process, {bound} (ulimit -n); {used} open in this one"
    with contextlib.suppress(OSError, ValueError):
        allocated, _, most = map(int, Path("/proc/sys/fs/file-nr").read_text().split())
        details |= {"system_used": allocated, "system_limit": most}
        text += (
            f"; {allocated} of {most} on this machine"
            if most < 2**31
            else (f"; {allocated} on this machine")
        )
    return Check("descriptors", OK, text, details)


def _keepalive(interval: float) -> Check:
    """Which of the options that the interval in force needs this kernel takes, on a socket."""
    if not interval:
        return Check("keepalive", OK, "as xoscar has it")
    wanted = keepalive.options(interval)
    with socket.socket() as sock:
        refused = keepalive.refused(sock, wanted)
    names = [option.name for option, _ in refused]
    details = {option.name: option.name not in names for option in wanted}
    if refused:
        told = ", ".join(f"{option} ({error})" for option, error in refused)
        text = f"the kernel refuses {told}: quiet connections are not kept alive as set"
        return Check("keepalive", PROBLEM, text, details)
    return Check("keepalive", OK, ", ".join(map(str, wanted)), details)


def _extra(name: str, purpose: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check(name, OK, f"not installed (optional, for {purpose})", {"version": None})
    version = importlib.metadata.version(name)
    return Check(name, OK, version, {"version": version})
