"""What is built, installed and removed: the distributions, in virtual environments of their own."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from ..support.processes import ROOT
from ..support.virtual_environments import Environment, run

PROJECT = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "setup.py")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def copy_project(to: Path) -> Path:
    """A copy of what a distribution is built from: building leaves files beside its sources."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "xoscar_idle", to / "xoscar_idle", ignore=ignored)
    shutil.copytree(ROOT / "tests", to / "tests", ignore=ignored)
    for name in (*PROJECT, "xoscar_idle.pth"):
        shutil.copy(ROOT / name, to)
    return to


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel built from the source tree, and the one built from the sdist."""
    project = copy_project(tmp_path_factory.mktemp("project"))
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    # Without --wheel, build makes the sdist and then a wheel from it.
    run(*build, "from-sdist", cwd=project)
    run(*build, "from-tree", "--wheel", cwd=project)
    return {place: next((project / place).glob("*.whl")) for place in ("from-tree", "from-sdist")}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


IMPORTED = "import sys; print(*sorted({'xoscar', 'xoscar_idle'} & set(sys.modules)))"
LOADED = "import sys; print(*sorted(sys.modules))"
ACTIVE = "import xoscar; from xoscar_idle import is_active; print(is_active())"


def check_activation(environment: Environment) -> None:
    """The variable alone decides, and nothing happens before xoscar is imported."""
    assert environment.run(ACTIVE, timeout="5") == ["True"]
    assert environment.run(ACTIVE, timeout="off") == ["False"]
    assert environment.run(ACTIVE, timeout=None) == ["False"]
    assert environment.run(IMPORTED, timeout="5") == ["xoscar_idle"]
    assert environment.run(IMPORTED, timeout=None) == []
    # A start of Python with the variable set loads next to nothing more.
    more = set(environment.run(LOADED, timeout="5")) - set(environment.run(LOADED, timeout=None))
    ours = {"xoscar_idle", *(f"xoscar_idle.{name}" for name in ("gate", "import_hook", "startup"))}
    assert more <= {"__future__", *ours}


def check_removal(environment: Environment) -> None:
    """Nothing stays behind, neither bytecode nor the .pth file."""
    assert environment.files() > environment.bare
    environment.pip("uninstall", "--yes", "xoscar-idle")
    assert environment.files() == environment.bare
    assert environment.run(IMPORTED, timeout="5") == []


@pytest.mark.parametrize("place", ["from-tree", "from-sdist"])
def test_wheel(wheels: dict[str, Path], place: str) -> None:
    with zipfile.ZipFile(wheels[place]) as wheel:
        names = wheel.namelist()
        (record,) = (name for name in names if name.endswith(".dist-info/RECORD"))
        recorded = [line.partition(",")[0] for line in wheel.read(record).decode().splitlines()]
        pth = wheel.read("xoscar_idle.pth")
    assert sorted(recorded) == sorted(names)
    assert [name for name in names if name.endswith(".pth")] == ["xoscar_idle.pth"]
    assert pth == (ROOT / "xoscar_idle.pth").read_bytes()
    assert "xoscar_idle/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "xoscar_idle",
        "xoscar_idle.pth",
        record.partition("/")[0],
    }


@pytest.mark.parametrize("place", ["from-tree", "from-sdist"])
def test_install_and_uninstall(
    wheels: dict[str, Path], place: str, environment: Environment
) -> None:
    environment.pip("install", "--no-deps", "--no-index", wheels[place])
    assert (environment.site / "xoscar_idle.pth").is_file()
    assert (environment.path / "bin" / "xoscar-idle").is_file()
    check_activation(environment)
    check_removal(environment)


def test_editable_install_and_uninstall(tmp_path: Path, environment: Environment) -> None:
    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    environment.pip(
        "install", "--no-deps", "--no-index", "--no-build-isolation", "--editable", project
    )
    assert (environment.site / "xoscar_idle.pth").is_file()
    assert not (environment.site / "xoscar_idle").exists()
    # The only one beside the sources is the source itself: none in a build folder.
    assert list(project.rglob("*.pth")) == [project / "xoscar_idle.pth"]
    check_activation(environment)
    check_removal(environment)
