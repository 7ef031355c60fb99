"""Giving back to the disk what a file begins with, while somebody appends to it."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable

KEEP_SIZE = 1
PUNCH_HOLE = 2
"""Of ``linux/falloc.h``."""


def punch(descriptor: int, start: int, length: int) -> None:
    """Let these bytes be zeros that take no room; the size of the file stays.

    Raises
    ------
    OSError
        The platform or the file system cannot do it, or not now.
    """
    fallocate = _fallocate()
    if fallocate is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, start, length):
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes  # only where something is given back

    library = ctypes.CDLL(None, use_errno=True)
    # Where both are, the plain one may have offsets of 32 bits.
    for name in ("fallocate64", "fallocate"):
        if (found := getattr(library, name, None)) is not None:
            found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            return found  # type: ignore[no-any-return]
    return None
