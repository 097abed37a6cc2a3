"""The flow of ``benchmarks/runs.py``: it does almost no work, so that the overhead around it is measured."""

from prefect import flow, task


@task
def add(number: int, to: int) -> int:
    """Return a sum."""
    return number + to


@flow(name="Benchmark")
def small() -> int:
    """Run three tasks, one after the other."""
    return add(3, add(2, add(1, 0)))
