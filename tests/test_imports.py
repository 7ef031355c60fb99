"""Whatever a program imports first, in whatever thread, activation by the variable holds.

Each case is a fresh interpreter: a fork of one that has imported what xoscar imports, but neither
xoscar nor anything of ours.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import xoscar_idle

from .support.processes import line, run, started, tell

pytestmark = pytest.mark.integration

ROOT = Path(xoscar_idle.__file__).parent
MODULES = sorted(
    path.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", ".")
    for path in ROOT.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)

# For each line, a list of programs: forks for each, and prints what comes of them, as one list.
FORKS = """\
import contextlib, gc, importlib, json, os, subprocess, sys, tempfile
listing = "import sys; before = set(sys.modules); import xoscar; print(*set(sys.modules) - before)"
for name in subprocess.run([sys.executable, "-c", listing], stdout=-1, text=True).stdout.split():
    if not name.startswith("xoscar"):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
assert not any(name.startswith("xoscar") for name in sys.modules)
gc.freeze()  # no fork looks through what it has from here
for line in sys.stdin:
    told = []
    for program in json.loads(line):
        with tempfile.TemporaryFile() as output:
            if (child := os.fork()) == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                status = 1
                try:
                    os.environ["XOSCAR_IDLE_TIMEOUT"] = "30"
                    import xoscar_idle.startup  # as the .pth file does
                    exec(program, {"__name__": "program"})
                    status = 0
                except BaseException as error:
                    print(repr(error), flush=True)
                sys.stdout.flush()
                os._exit(status)
            os.waitpid(child, 0)
            output.seek(0)
            told.append(output.read().decode())
    print(json.dumps(told), flush=True)
"""


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    for name in xoscar_idle.__all__:
        assert importlib.util.find_spec(f"xoscar_idle.{name}") is None, name


def test_what_needs_no_xoscar_imports_no_asyncio() -> None:
    """Two threads that import it and xoscar for the first time can meet Python's own deadlock."""
    needs_xoscar = {"CallTimeout", "PoolCrashed", "PoolUnavailable", "apply", "deadline", "ping"}
    names = set(xoscar_idle.__all__) - needs_xoscar
    program = "import sys, xoscar_idle.metrics, xoscar_idle\n" + "\n".join(
        f"xoscar_idle.{name}" for name in sorted(names)
    )
    done = run(
        sys.executable, "-c", f"{program}\nprint({{'asyncio', 'xoscar'}} & {{*sys.modules}})"
    )
    assert done.stdout == "set()\n"


ACTIVE = "import xoscar, xoscar_idle; print(xoscar_idle.is_active())"

Outputs = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def outputs() -> Iterator[Outputs]:
    """What each of some programs prints, in a fresh interpreter with the variable set."""
    with started(sys.executable, "-c", FORKS) as process:

        def ask(programs: list[str]) -> list[str]:
            tell(process, json.dumps(programs))
            told: list[str] = json.loads(line(process))
            return told

        yield ask


@pytest.mark.parametrize(
    "statement",
    [
        *(f"from xoscar_idle import {name}" for name in xoscar_idle.__all__),
        *(f"import {module}" for module in MODULES),
    ],
)
def test_every_name_and_every_module_first_in_each_order_with_xoscar(
    outputs: Outputs, statement: str
) -> None:
    programs = [f"{statement}; {ACTIVE}", f"import xoscar; {statement}; {ACTIVE}"]
    assert outputs(programs) == ["True\n"] * 2


@pytest.mark.parametrize(
    "module",
    [
        *(f"connection.{name}" for name in ("deadlines", "probe", "transports", "caller")),
        *(f"supervision.{name}" for name in ("crash", "witness")),
        "telemetry.pool_query",
    ],
)
def test_two_threads_import_xoscar_and_one_of_ours(outputs: Outputs, module: str) -> None:
    """Each waits in the middle until the other has got as far as it can."""
    program = f"""
import sys, threading
has_begun, may_go_on = threading.Event(), threading.Event()

class Pauses:
    def find_spec(self, name, path, target=None):
        me = threading.current_thread().name
        if me == WAITS[0] and name == WAITS[1]:
            has_begun.set()
            may_go_on.wait(WAITS[2])

sys.meta_path.insert(0, Pauses())

def ours():
    import xoscar_idle.{module}

def theirs():
    import xoscar

def run(first, second):
    threads = [threading.Thread(target=each, name=each.__name__) for each in (first, second)]
    threads[0].start()
    has_begun.wait(60)
    threads[1].start()
    if WAITS[2] > 1:
        threads[1].join(0.2)  # it may have to wait for the first
        may_go_on.set()
    for each in threads:
        each.join()

"""
    rest = f"\nassert 'xoscar_idle.{module}' in sys.modules\n{ACTIVE}"
    programs = [
        # Ours is half imported when xoscar is, by the other thread.
        f'{program}WAITS = "ours", "xoscar_idle.config", 60\nrun(ours, theirs){rest}',
        f'{program}WAITS = "ours", "xoscar", 60\nrun(ours, theirs){rest}',
        # Activation is under way, within the import of xoscar, when ours begins to be imported.
        f'{program}WAITS = "theirs", "xoscar_idle.activation", 60\nrun(theirs, ours){rest}',
        f'{program}WAITS = "theirs", "xoscar_idle.telemetry.pool_query", 60\n'
        f"run(theirs, ours){rest}",
    ]
    assert outputs(programs) == ["True\n"] * 4


PAUSES = """
import sys, threading
from xoscar_idle import install

class Pauses:
    def find_spec(self, name, path, target=None):
        if threading.current_thread().name == PAUSES_IN and name == PAUSES_AT:
            has_begun.set()
            may_go_on.wait(60)

has_begun, may_go_on, errors = threading.Event(), threading.Event(), []

def run(first, second):
    def guarded(work):
        try:
            exec(work, {})
        except BaseException as error:
            errors.append(error)
    sys.meta_path.insert(0, Pauses())
    threads = [threading.Thread(target=guarded, args=(w,), name=w) for w in (first, second)]
    threads[0].start()
    has_begun.wait(60)
    threads[1].start()
    threads[1].join(0.2)  # it may have to wait for the first
    may_go_on.set()
    for each in threads:
        each.join()
    import xoscar_idle
    print(errors, xoscar_idle.is_active(), xoscar_idle.settings().idle_timeout)
"""


@pytest.mark.parametrize("name", ["deadline", "ping", "CallTimeout", "PoolCrashed"])
def test_a_thread_installs_and_another_imports(outputs: Outputs, name: str) -> None:
    installs, imports = (
        "import xoscar_idle; xoscar_idle.install(idle_timeout=5)",
        f"from xoscar_idle import {name}",
    )
    programs = [
        f"{PAUSES}\nPAUSES_IN, PAUSES_AT = {first!r}, {at!r}\nrun({first!r}, {second!r})"
        for first, second in ((installs, imports), (imports, installs))
        for at in (
            "xoscar.backends.message",
            "xoscar_idle.connection.leases",
            "xoscar_idle.connection.routing",
        )
    ]
    assert outputs(programs) == ["[] True 5.0\n"] * 6


@pytest.mark.parametrize("name", ["deadline", "ping", "CallTimeout", "PoolCrashed"])
def test_a_thread_imports_xoscar_and_another_a_name_of_ours(outputs: Outputs, name: str) -> None:
    theirs, ours = "import xoscar", f"from xoscar_idle import {name}"
    programs = [
        f"{PAUSES}\nPAUSES_IN, PAUSES_AT = {first!r}, {at!r}\nrun({first!r}, {second!r})"
        for first, second in ((theirs, ours), (ours, theirs))
        for at in (
            "xoscar.backends.message",
            "xoscar.backends.core",
            "xoscar_idle.connection.deadlines",
        )
    ]
    assert outputs(programs) == ["[] True 30.0\n"] * 6


def test_what_prevented_activation_is_told(outputs: Outputs) -> None:
    program = """
import sys
class Broken:
    def find_spec(self, name, path, target=None):
        if name == "xoscar_idle.connection.registry":
            raise ImportError("broken")
sys.meta_path.insert(0, broken := Broken())
import logging; logging.getLogger("xoscar_idle").setLevel("CRITICAL")
try: import xoscar_idle.connection.preexisting, xoscar_idle.connection.registry
except ImportError as error: print(error)
from xoscar_idle.patching import is_active, why_inactive
print(is_active(), why_inactive())
"""
    assert outputs([program]) == ["broken\nFalse broken\n"]
