"""Activation without a change of code: waits for the program to import ``xoscar``.

``xoscar_idle.pth`` imports this module whenever Python starts with ``XOSCAR_IDLE_TIMEOUT`` set,
also for programs that have nothing to do with xoscar. It therefore imports next to nothing.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing's own costs more to import than this whole module
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType


UNABLE = "xoscar_idle could not be activated; xoscar runs without it"


class ImportHook:
    """Finds a module where the finders after it do, and acts once its import has completed.

    It stays on ``sys.meta_path`` until then: when the import fails, the next one is hooked again.

    Parameters
    ----------
    name
        The module.
    then
        What to do; it must not raise.
    unable
        What to warn of where the import cannot be hooked.
    """

    def __init__(self, name: str, then: Callable[[], None], unable: str) -> None:
        self._name = name
        self._then = then
        self._unable = unable

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the module, its loader hooked; None for any other module."""
        if fullname != self._name or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            if not hasattr(finder, "find_spec"):  # importlib passes over these, too
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:  # a directory without __init__.py has none
                    self._hook(spec.loader)
                return spec
        return None

    def _hook(self, loader: Loader) -> None:
        """Let the loader's next execution of the module act.

        The loader is not wrapped in another: inspect, importlib.resources and others ask it.
        """
        try:
            execute, attributes = loader.exec_module, vars(loader)
            replaced = attributes.get("exec_module")

            def exec_module(module: ModuleType) -> None:
                # A zipimporter loads every module of its archive.
                is_ours = module.__name__ == self._name
                if is_ours:
                    if replaced is None:
                        del attributes["exec_module"]
                    else:
                        attributes["exec_module"] = replaced
                execute(module)
                if is_ours and self in sys.meta_path:
                    self.disarm()
                    self._then()

            attributes["exec_module"] = exec_module
        except (AttributeError, TypeError):  # a loader of the old protocol or without a __dict__
            warn(self._unable)

    def arm(self) -> None:
        """Wait for the import of the module."""
        sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Wait no longer."""
        # A new list: an import in another thread iterates over the old one, and would skip a finder
        # if this one were removed from it.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


def warn(message: str) -> None:
    """Log a warning about the error that is being handled."""
    import logging

    logging.getLogger("xoscar_idle").warning(message, exc_info=True)


def activate() -> None:
    """Activate by environment; a failure is logged and spares the program's import."""
    try:
        from xoscar_idle.activation import activate_from_environment

        activate_from_environment()
    except Exception:
        warn(UNABLE)


def start() -> None:
    """Activate now if ``xoscar`` is imported already, or else once it will be."""
    # The rule of config.wanted(), whose module is too heavy for every start of Python.
    if os.environ.get("XOSCAR_IDLE_TIMEOUT", "").strip().lower() in ("", "off"):
        return
    if "xoscar" in sys.modules:
        activate()
    else:
        ImportHook("xoscar", activate, UNABLE).arm()


start()
