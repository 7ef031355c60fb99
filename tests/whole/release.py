"""Is what is committed fit to be released? ``make release-check`` runs this; it needs the package
index.

Where test_packaging borrows the dependencies of this environment, this installs as a user does.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import xoscar_idle

from ..support.processes import ROOT
from ..support.virtual_environments import Environment, run
from .test_packaging import check_activation

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def git(*arguments: str) -> str:
    return run("git", *arguments, cwd=ROOT)


def test_the_changelog_ends_with_this_version() -> None:
    page = (ROOT / "CHANGELOG.md").read_text()
    unreleased, version, *_ = re.findall(r"^## \[(.*)\](.*)\n((?s:.*?))(?=^## |^\[)", page, re.M)
    assert unreleased[0] == "Unreleased"
    assert not unreleased[2].strip(), "it belongs to the version"
    assert version[0] == xoscar_idle.__version__
    assert re.fullmatch(r" - \d{4}-\d{2}-\d{2}", version[1]), version[1]


def test_the_tag_is_this_version() -> None:
    """Where there is one yet."""
    tags = [tag for tag in git("tag", "--points-at", "HEAD").split() if tag.startswith("v")]
    assert tags in ([], [f"v{xoscar_idle.__version__}"])


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is made from it, of what is committed."""
    folder = tmp_path_factory.mktemp("release")
    archive, project, made = folder / "all.tar", folder / "project", folder / "dist"
    git("archive", "--output", str(archive), "HEAD")
    project.mkdir()
    run("tar", "--extract", "--file", archive, cwd=project)
    run(sys.executable, "-m", "build", "--outdir", made, cwd=project)
    return {"wheel": next(made.glob("*.whl")), "sdist": next(made.glob("*.tar.gz"))}


def test_the_index_will_show_them(distributions: dict[str, Path]) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *distributions.values(), cwd=ROOT)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_it_activates(distributions: dict[str, Path], kind: str, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv", borrow=False)
    environment.pip("install", "--quiet", distributions[kind])
    check_activation(environment)
    command = environment.path / "bin" / "xoscar-idle"
    told = run(command, "doctor", cwd=tmp_path, timeout="5")
    assert "\nActive in a new process of this Python.\n" in told
    version = f"xoscar-idle, version {xoscar_idle.__version__}\n"
    assert run(command, "--version", cwd=tmp_path) == version
    metadata = "from importlib.metadata import version; print(version('xoscar-idle'))"
    assert environment.run(metadata, timeout=None) == [xoscar_idle.__version__]
