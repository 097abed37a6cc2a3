"""prctl(2): what the kernel holds for this process."""

from __future__ import annotations

import ctypes

_PARENT_DEATH_SIGNAL, _DUMPABLE, _CHILD_SUBREAPER = 1, 4, 36


def close_to_others() -> None:
    """Refuse other processes of this account to read and write this process's memory, and hide it from them in /proc.

    Flow runs have the worker's account. The processes that this one forks inherit it; a program that replaces this one
    begins open.
    """
    _set(_DUMPABLE, 0)


def open_to_others() -> None:
    """Undo ``close_to_others``: debuggers, and programs that look at themselves in /proc, need it."""
    _set(_DUMPABLE, 1)


def adopt() -> None:
    """Become the parent of the processes that those started by this one leave behind."""
    _set(_CHILD_SUBREAPER, 1)


def get_signal_at_end_of_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    _set(_PARENT_DEATH_SIGNAL, number)


def _set(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value, 0, 0, 0):
        raise OSError(f"prctl({option}, {value}) failed")
