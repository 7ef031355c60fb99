"""Acting once a module has been imported, without importing it.

Every start of Python with the variable set imports this, and so it imports next to nothing.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock, get_ident

TYPE_CHECKING = False  # typing's own costs more to import than this whole module
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Execute = Callable[[ModuleType], None]


class _Finder:
    """Finds modules where the finders after it do, and has their execution go through it."""

    def _wants(self, name: str) -> bool:
        raise NotImplementedError

    def _execute(self, execute: Execute, module: ModuleType) -> None:
        raise NotImplementedError

    def _cannot(self) -> None:
        """A module that is wanted has a loader that cannot be hooked."""
        raise NotImplementedError

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that is wanted, its loader hooked; None for any other."""
        if not self._wants(fullname) or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            if not hasattr(finder, "find_spec"):  # importlib passes over these, too
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:  # a directory without __init__.py has none
                    self._hook(fullname, spec.loader)
                return spec
        return None

    def _hook(self, name: str, loader: Loader) -> None:
        """Let the loader's next execution of the module go through us.

        The loader is not wrapped in another: inspect, importlib.resources and others ask it.
        """
        try:
            execute, attributes = loader.exec_module, vars(loader)
            replaced = attributes.get("exec_module")

            def exec_module(module: ModuleType) -> None:
                # A zipimporter loads every module of its archive.
                if module.__name__ != name:
                    execute(module)
                    return
                if replaced is None:
                    attributes.pop("exec_module", None)
                else:
                    attributes["exec_module"] = replaced
                self._execute(execute, module)

            attributes["exec_module"] = exec_module
        except (AttributeError, TypeError):  # a loader of the old protocol or without a __dict__
            self._cannot()

    def arm(self) -> None:
        """Begin to look at imports."""
        sys.meta_path.insert(0, self)

    def disarm(self) -> None:
        """Look at no more imports."""
        # A new list: an import in another thread iterates over the old one, and would skip a finder
        # if this one were removed from it.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]


class ImportHook(_Finder):
    """Acts once the import of one module has completed.

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

    def _wants(self, name: str) -> bool:
        return name == self._name

    def _execute(self, execute: Execute, module: ModuleType) -> None:
        execute(module)
        if self in sys.meta_path:
            self.disarm()
            self._then()

    def _cannot(self) -> None:
        warn(self._unable)


class HalfImported(_Finder):
    """Knows whether a module of a package is just being imported, in whatever thread.

    What imports such a module meanwhile may find half of it.
    """

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."
        self._lock = RLock()
        self._depths: dict[int, int] = {}  # by thread, where there are any
        self._then: Callable[[], None] | None = None
        self.begun = 0
        """How often a thread has begun, so far."""
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = RLock()
        self._depths = {me: depth for me, depth in self._depths.items() if me == get_ident()}

    def put_off(self, then: Callable[[], None]) -> bool:
        """Do ``then`` as soon as no module is half imported; False if none is."""
        with self._lock:
            if self._depths:
                self._then = then
            return bool(self._depths)

    def __enter__(self) -> None:
        """This thread imports."""
        me = get_ident()
        with self._lock:
            depth = self._depths.get(me, 0)
            self._depths[me] = depth + 1
            self.begun += not depth

    def __exit__(self, *_: object) -> None:
        """This thread has imported, or failed to."""
        me, then = get_ident(), None
        with self._lock:
            depth = self._depths.pop(me) - 1
            if depth:
                self._depths[me] = depth
            if not self._depths:
                then, self._then = self._then, None
        if then is not None:
            then()

    def _wants(self, name: str) -> bool:
        return name.startswith(self._prefix)

    def _execute(self, execute: Execute, module: ModuleType) -> None:
        with self:
            execute(module)

    def _cannot(self) -> None:
        pass  # it is imported all the same


def warn(message: str) -> None:
    """Log a warning about the error that is being handled."""
    import logging

    logging.getLogger("xoscar_idle").warning(message, exc_info=True)
