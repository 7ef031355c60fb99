"""The import hook, in processes of their own and with stand-ins for xoscar and for activation."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from .support import processes
from .support.environment import environment
from .support.processes import ROOT

pytestmark = pytest.mark.integration

ACTIVATION = """\
import sys

def activate_from_environment():
    print("activated", sys.modules["xoscar"].complete)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder for sys.path: the real ``startup`` and ``.pth``, and stand-ins for all the rest."""
    for package in ("xoscar", "xoscar_idle"):
        (tmp_path / package).mkdir()
    (tmp_path / "xoscar/__init__.py").write_text('print("xoscar")\ncomplete = True\n')
    (tmp_path / "xoscar/part.py").write_text('print("part")\n')
    (tmp_path / "xoscar_idle/__init__.py").touch()
    (tmp_path / "xoscar_idle/activation.py").write_text(ACTIVATION)
    for name in ("startup.py", "gate.py", "import_hook.py"):
        shutil.copy(ROOT / "xoscar_idle" / name, tmp_path / "xoscar_idle")
    shutil.copy(ROOT / "xoscar_idle.pth", tmp_path)
    return tmp_path


def python(
    tree: Path, *args: str, timeout: str | None = "5", supervise: str | None = None
) -> tuple[list[str], str]:
    """Run Python with the two variables as given; the lines of stdout, and stderr."""
    given = {"XOSCAR_IDLE_TIMEOUT": timeout, "XOSCAR_SUPERVISE": supervise}
    env = environment(PYTHONPATH=str(tree))
    env |= {name: value for name, value in given.items() if value is not None}
    # Without the site module, so that the .pth file of an installed xoscar_idle does not act.
    done = processes.run(sys.executable, "-S", "-W", "error", *args, cwd=tree, env=env)
    return done.stdout.splitlines(), done.stderr


def run(
    tree: Path, *lines: str, timeout: str | None = "5", supervise: str | None = None
) -> list[str]:
    """Run the program; nothing may come from it on stderr."""
    output, errors = python(tree, "-c", "\n".join(lines), timeout=timeout, supervise=supervise)
    assert not errors
    return output


@pytest.mark.parametrize("imported", ["xoscar", "xoscar.part"])
def test_activates_when_the_import_has_completed(tree: Path, imported: str) -> None:
    output = run(tree, "import xoscar_idle.startup", 'print("armed")', f"import {imported}")
    assert output[:3] == ["armed", "xoscar", "activated True"]


def test_activates_for_a_module_run_as_a_program(tree: Path) -> None:
    (tree / "xoscar/part.py").write_text("print(__name__)\n")
    run_part = 'runpy.run_module("xoscar.part", run_name="__main__")'
    output = run(tree, "import runpy, xoscar_idle.startup", run_part)
    assert output == ["xoscar", "activated True", "__main__"]


def test_activates_at_once_when_imported_already(tree: Path) -> None:
    output = run(
        tree,
        "import sys, xoscar",
        "found = sys.meta_path[:]",
        "import xoscar_idle.startup",
        "assert sys.meta_path == found",
    )
    assert output == ["xoscar", "activated True"]


@pytest.mark.parametrize(
    ("timeout", "supervise"),
    [
        *((timeout, None) for timeout in (None, "", "  ", "off", " OFF ")),
        *((None, supervise) for supervise in ("", "off", " OFF ", "0")),
        ("off", "off"),
    ],
)
def test_does_nothing_when_off(tree: Path, timeout: str | None, supervise: str | None) -> None:
    output = run(
        tree,
        "import sys",
        "found = sys.meta_path[:]",
        "import xoscar_idle.startup",
        "assert sys.meta_path == found",
        "import xoscar",
        timeout=timeout,
        supervise=supervise,
    )
    assert output == ["xoscar"]


def test_zero_activates(tree: Path) -> None:
    output = run(tree, "import xoscar_idle.startup, xoscar", timeout="0")
    assert output == ["xoscar", "activated True"]


def test_leaves_no_trace(tree: Path) -> None:
    run(
        tree,
        "import importlib.machinery, importlib.resources, inspect, sys",
        "found = sys.meta_path[:]",
        "import xoscar_idle.startup",
        "assert sys.meta_path != found",
        "import xoscar",
        "assert sys.meta_path == found",
        "assert xoscar.__loader__ is xoscar.__spec__.loader",
        "assert type(xoscar.__loader__) is importlib.machinery.SourceFileLoader",
        "assert set(vars(xoscar.__loader__)) == {'name', 'path'}",
        "assert 'complete' in inspect.getsource(xoscar)",
        "assert importlib.resources.files(xoscar).joinpath('part.py').is_file()",
    )


def test_activates_once(tree: Path) -> None:
    output = run(
        tree,
        "import importlib, sys",
        "import xoscar_idle.startup, xoscar",
        "importlib.reload(xoscar)",
        "del sys.modules['xoscar']",
        "import xoscar",
    )
    assert output.count("activated True") == 1


def test_a_failed_import_is_hooked_again(tree: Path) -> None:
    failing = (
        "import os\nif 'BROKEN' in os.environ: raise RuntimeError('broken')\ncomplete = True\n"
    )
    (tree / "xoscar/__init__.py").write_text(failing)
    output = run(
        tree,
        "import os",
        "import xoscar_idle.startup",
        "os.environ['BROKEN'] = '1'",
        "for attempt in range(2):",
        "    try: import xoscar",
        "    except RuntimeError as error: print(error)",
        "del os.environ['BROKEN']",
        "import xoscar",
    )
    assert output == ["broken", "broken", "activated True"]


def test_xoscar_is_not_installed(tree: Path) -> None:
    shutil.rmtree(tree / "xoscar")
    output = run(
        tree,
        "import xoscar_idle.startup",
        "try: import xoscar",
        "except ModuleNotFoundError as error: print(error, error.name)",
    )
    assert output == ["No module named 'xoscar' xoscar"]


def test_a_folder_of_that_name_is_not_xoscar(tree: Path) -> None:
    (tree / "xoscar/__init__.py").unlink()
    assert run(tree, "import xoscar_idle.startup, xoscar", "print(xoscar.__file__)") == ["None"]


def test_looking_for_xoscar_does_not_activate(tree: Path) -> None:
    output = run(
        tree,
        "import importlib.util, xoscar_idle.startup",
        "assert importlib.util.find_spec('xoscar') is not None",
        'print("found")',
        "import xoscar",
    )
    assert output == ["found", "xoscar", "activated True"]


def test_one_loader_for_many_modules(tree: Path) -> None:
    archive = tree / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("xoscar/__init__.py", 'print("xoscar")\ncomplete = True\n')
        file.writestr("other.py", 'print("other")\n')
    output = run(
        tree,
        "import sys",
        f"sys.path.insert(0, {str(archive)!r})",
        "import importlib.util, xoscar_idle.startup",
        "importlib.util.find_spec('xoscar')",
        "import other, xoscar",
        "assert 'exec_module' not in vars(xoscar.__loader__)",
    )
    assert output == ["other", "xoscar", "activated True"]


def test_beside_another_import_hook(tree: Path) -> None:
    """Another tool's finder asks the rest of sys.meta_path, and so calls ours from within."""
    output = run(
        tree,
        "import importlib.util, sys, xoscar_idle.startup",
        "class Other:",
        "    busy = False",
        "    def find_spec(self, name, path, target=None):",
        "        if self.busy or name != 'xoscar': return None",
        "        self.busy = True",
        "        try: return importlib.util.find_spec(name)",
        "        finally: self.busy = False",
        "for place in (0, 2):",
        "    sys.meta_path.insert(place, Other())",
        "import xoscar",
        "assert 'exec_module' not in vars(xoscar.__loader__)",
    )
    assert output == ["xoscar", "activated True"]


def test_threads_import_at_the_same_time(tree: Path) -> None:
    output = run(
        tree,
        "import threading, xoscar_idle.startup",
        "barrier = threading.Barrier(8)",
        "def work():",
        "    barrier.wait()",
        "    import xoscar",
        "    assert xoscar.complete",
        "threads = [threading.Thread(target=work) for _ in range(8)]",
        "for thread in threads: thread.start()",
        "for thread in threads: thread.join()",
    )
    assert output == ["xoscar", "activated True"]


@pytest.mark.parametrize(
    "activation",
    ["raise ImportError('half removed')", "def activate_from_environment(): raise KeyError('bug')"],
)
def test_a_failed_activation_spares_the_import(tree: Path, activation: str) -> None:
    (tree / "xoscar_idle/activation.py").write_text(activation)
    output, errors = python(
        tree, "-c", "import xoscar_idle.startup, xoscar; print(xoscar.complete)"
    )
    assert output == ["xoscar", "True"]
    assert errors.startswith("xoscar_idle could not be activated")
    assert activation.partition("raise ")[2].partition("(")[0] in errors


def test_a_loader_that_cannot_be_hooked_spares_the_import(tree: Path) -> None:
    program = (
        "import importlib.util, sys, xoscar_idle.startup",
        "class Loader:",
        "    __slots__ = ()",
        "    def create_module(self, spec): return None",
        "    def exec_module(self, module): print('executed')",
        "class Finder:",
        "    def find_spec(self, name, path, target=None):",
        "        if name == 'xoscar': return importlib.util.spec_from_loader(name, Loader())",
        "sys.meta_path.insert(1, Finder())",
        "import xoscar",
    )
    output, errors = python(tree, "-c", "\n".join(program))
    assert output == ["executed"]
    assert errors.startswith("xoscar_idle could not be activated")


def test_imports_next_to_nothing(tree: Path) -> None:
    output = run(
        tree,
        "import os, sys",
        "before = set(sys.modules)",
        "import xoscar_idle.startup",
        "print(*sorted(set(sys.modules) - before))",
    )
    assert output == [
        "__future__ xoscar_idle xoscar_idle.gate xoscar_idle.import_hook xoscar_idle.startup"
    ]


PTH = "import os, site, sys; site.addsitedir(os.environ['PYTHONPATH'])"


@pytest.mark.parametrize(
    ("timeout", "supervise"), [("5", None), (None, "observe"), ("off", "observe"), ("5", "off")]
)
def test_pth_arms(tree: Path, timeout: str | None, supervise: str | None) -> None:
    output = run(
        tree,
        PTH,
        "assert 'xoscar' not in sys.modules",
        "import xoscar",
        timeout=timeout,
        supervise=supervise,
    )
    assert output == ["xoscar", "activated True"]


def test_pth_is_idle_without_the_variables(tree: Path) -> None:
    output = run(
        tree, PTH, "assert 'xoscar_idle' not in sys.modules", "import xoscar", timeout=None
    )
    assert output == ["xoscar"]


@pytest.mark.parametrize("remains", ["nothing", "no startup", "broken"])
def test_pth_outlives_the_package(tree: Path, remains: str) -> None:
    if remains == "nothing":
        shutil.rmtree(tree / "xoscar_idle")
    elif remains == "no startup":
        (tree / "xoscar_idle/startup.py").unlink()
    else:
        (tree / "xoscar_idle/startup.py").write_text("def")
    assert run(tree, PTH, "import xoscar") == ["xoscar"]
