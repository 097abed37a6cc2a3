"""Timeouts of tests, in seconds: generous, in one place, and in proportion to how slow the machine is.

A wait ends as soon as its condition holds, so a limit costs nothing while all is well. Each limit below is for an idle
machine like the one that ``REFERENCE_SECONDS`` was measured on; ``limit`` multiplies it by how much slower this one is.
"""

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# A running service answers, or a change takes effect.
ANSWER = 60.0
# A service starts or recovers, with its dependencies; a small flow run completes.
START = 120.0
# A flow run whose process or host has died is marked as crashed, and retried after a minute's delay.
CRASH = 360.0
# A playbook completes.
PLAYBOOK = 900.0
# A virtual machine with an emulated processor boots and converges.
EMULATED = 4 * 3600.0

# The variable by which the suite passes its measurement to the parts.
VARIABLE = "TEST_SLOWNESS"
# `_WORK` on both cores of an idle virtual machine, AMD EPYC at 2.6 GHz.
REFERENCE_SECONDS = 1.0
_WORK = "import hashlib; [hashlib.sha256(str(i).encode()).digest() for i in range(1_000_000)]"


def measure() -> float:
    """Return how many times slower than the reference this machine is now with two processes at work, at least 1."""
    begin = time.monotonic()
    processes = [subprocess.Popen([sys.executable, "-I", "-S", "-c", _WORK]) for _ in range(2)]
    for process in processes:
        process.wait()
    return max(1.0, round((time.monotonic() - begin) / REFERENCE_SECONDS, 1))


@functools.cache
def slowness() -> float:
    """Return the suite's measurement; measure now if the tests run without the suite."""
    given = os.environ.get(VARIABLE)
    return float(given) if given else measure()


def limit(seconds: float) -> float:
    """Return the limit on this machine for what takes at most ``seconds`` on an idle reference machine."""
    return seconds * slowness()


def wait_until(condition: Callable[[], T], what: str, seconds: float = START, *, poll: float = 0.1) -> T:
    """Wait until a condition returns a true value, and return it.

    Args:
        condition: Evaluated every ``poll`` seconds.
        what: What is waited for, for the error.
        seconds: The limit on an idle machine.
        poll: Seconds between two evaluations.

    Raises:
        AssertionError: The condition did not hold in time.

    """
    patience = limit(seconds)
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {patience:.0f} seconds: {what}"
        # A pause between evaluations, which may start a process each; it never replaces one.
        time.sleep(poll)
    return value
