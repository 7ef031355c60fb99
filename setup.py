"""The metadata is in setup.cfg. Here is only what setuptools has no option for: the .pth file."""

from __future__ import annotations

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Puts ``xoscar_idle.pth`` beside the package, where site-packages will be."""

    def run(self) -> None:
        super().run()
        top = self.build_lib
        if self.editable_mode:
            # The editable wheel is made from what "install" would place, not from build_lib.
            top = self.get_finalized_command("install").install_lib
        self.copy_file("xoscar_idle.pth", top)


setup(cmdclass={"build_py": BuildPy})
