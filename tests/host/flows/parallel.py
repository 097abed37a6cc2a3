"""Functions that flows run in processes of their own: new processes import them by the name of this module."""

import os


def square(number: int) -> tuple[int, int]:
    """Return a number's square, and the process that computed it."""
    return number * number, os.getpid()
