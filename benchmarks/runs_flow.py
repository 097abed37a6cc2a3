"""The flow that ``benchmarks/runs.py`` lets workers run: next to no work, so that what is around it is measured."""

from prefect import flow, task


@task
def add(number: int, to: int) -> int:
    """Return a sum."""
    return number + to


@flow(name="Benchmark")
def small() -> int:
    """Run three tasks, one after the other."""
    return add(3, add(2, add(1, 0)))
