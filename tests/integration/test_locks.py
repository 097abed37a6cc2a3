"""Whoever can connect can hold some locks: what waits for these ends, and says who holds them."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ca_biositing.pipeline.etl import run as etl_run
from ca_biositing.pipeline.flows.primary_product import PRIMARY_PRODUCTS
from ca_biositing.pipeline.sources.csv_folder import CsvFolder


def test_a_load_does_not_wait_for_ever(
    migrated_database: Engine, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held by a session that shares no table with flows; others of its kind are not named."""
    monkeypatch.setattr(etl_run, "_LOCK_TIMEOUT", "1s")
    lock = text("SELECT pg_backend_pid(), pg_advisory_lock(hashtextextended(:key, 0))")
    with migrated_database.connect() as holder, migrated_database.connect() as other:
        holder.execute(text("SET application_name = 'a notebook'"))
        pid = holder.execute(lock, {"key": f"etl {PRIMARY_PRODUCTS.name}"}).scalar_one()
        unconcerned = other.execute(lock, {"key": "etl of another flow"}).scalar_one()

        with pytest.raises(etl_run.FlowIsLockedError) as refused:
            etl_run.run(PRIMARY_PRODUCTS, CsvFolder(source), migrated_database)

    said = str(refused.value)
    assert f"the lock of the flow {PRIMARY_PRODUCTS.name}, for which this run waited 1s" in said
    assert f"process {pid} of login postgres, application a notebook (ExclusiveLock, in a transaction since 20" in said
    assert f"pg_terminate_backend({pid})" in said
    assert f"process {unconcerned} " not in said
    loaded = etl_run.run(PRIMARY_PRODUCTS, CsvFolder(source), migrated_database)
    assert loaded.inserted > 0


@pytest.mark.parametrize("flow", ["a", "observation", "experiment", "x" * 100, "é"])
def test_the_holder_is_found_by_any_key(migrated_database: Engine, monkeypatch: pytest.MonkeyPatch, flow: str) -> None:
    """The hash, of either sign, is in two columns of unsigned numbers."""
    monkeypatch.setattr(etl_run, "_LOCK_TIMEOUT", "10ms")
    with migrated_database.connect() as holder, migrated_database.connect() as connection:
        holder.execute(text("SELECT pg_advisory_lock(hashtextextended(:key, 0))"), {"key": f"etl {flow}"})
        connection.execute(text("SET lock_timeout = '10ms'"))
        with pytest.raises(etl_run.FlowIsLockedError, match=r"process \d+ of login postgres"):
            etl_run._lock(connection, flow)
