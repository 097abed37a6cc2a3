"""Load: write validated records into biocirv_db, through a staging table."""
# ruff: noqa: S608 - the names in the statements are those of our own tables; values are bound

import io
from collections.abc import Iterable, Mapping
from contextlib import closing

import polars as pl
import psycopg2
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, OperationalError

from ca_biositing.datamodels.models import ORPHANED_ROW, EtlWorksheet, RejectedRow
from ca_biositing.pipeline.etl.dataset import Dataset

# More than PostgreSQL's default, because staging tables are large and are sorted and hashed.
_WORK_MEM = "64MB"


class Load:
    """One run's load, in a transaction of the caller's: it becomes visible and durable when that commits.

    Call :meth:`stage`, :meth:`reject` and :meth:`name` for each validated frame, then :meth:`reject_contradictions`,
    :meth:`compare`, :meth:`note_orphans` and :meth:`upsert`.
    """

    def __init__(self, connection: Connection, dataset: Dataset, run_id: int) -> None:
        self._connection = connection
        self._dataset = dataset
        self._run_id = run_id
        self._target = dataset.table.name
        self._columns = [column.name for column in dataset.loaded_columns]
        self._nullable = {column.name for column in dataset.loaded_columns if column.nullable}
        self._key = [column.name for column in dataset.natural_key]
        self._others = [name for name in self._columns if name not in self._key]
        # Different spellings of one name are not a contradiction.
        self._spellings = [name for name in self._others if f"{name}_key" in self._columns]
        dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        types = {column.name: column.type.compile(dialect) for column in dataset.loaded_columns}
        self._worksheets: dict[str, int] = {}
        self._execute(f"SET LOCAL work_mem = '{_WORK_MEM}'")
        self._create("staging", {"worksheet_id": "integer", "row_number": "integer", **types})
        # The natural keys of rejected rows, as far as they are known.
        self._create("named", {name: types[name] for name in self._key})

    def stage(self, worksheet: str, records: pl.DataFrame) -> None:
        """Copy a worksheet's records into the staging table."""
        if worksheet not in self._worksheets:
            row = {"etl_run_id": self._run_id, "sheet": self._dataset.sheet, "worksheet": worksheet}
            statement = insert(EtlWorksheet).values(row).returning(EtlWorksheet.id)
            self._worksheets[worksheet] = self._connection.execute(statement).scalar_one()
        self._copy("staging", records.select(pl.lit(self._worksheets[worksheet]).alias("worksheet_id"), pl.all()))

    def reject(self, worksheet: str, rejected: pl.DataFrame) -> None:
        """Copy a worksheet's rejected rows into ``rejected_row``."""
        run = {"etl_run_id": self._run_id, "sheet": self._dataset.sheet, "worksheet": worksheet}
        constants = (pl.lit(value).alias(name) for name, value in run.items())
        self._copy(RejectedRow.__tablename__, rejected.select(*constants, pl.all()))

    def name(self, keys: pl.DataFrame) -> None:
        """Copy the natural keys of rejected rows: the rows of the table that have them are no orphans."""
        self._copy("named", keys.select(self._key))

    def reject_contradictions(self) -> int:
        """Reject the rows that have the same natural key but different values; return their number.

        None of them is loaded, because only a person can say which one is right. Of rows with equal values one stays
        staged, in the most frequent spelling, so that the result does not depend on the order of rows.
        """
        # Autovacuum does not analyze temporary tables; without statistics the planner assumes few rows.
        self._execute("SET LOCAL default_statistics_target = 10")
        self._execute("ANALYZE staging")
        key = _list(self._key)
        facts = _list(name for name in self._others if name not in self._spellings)
        version = f"dense_rank() OVER (PARTITION BY {key} ORDER BY {facts})" if facts else "1"
        # Ordered as text, because 2 and 2.0 are equal but are spelled differently.
        texts = [f'CAST({name} AS text) COLLATE "C"' for name in self._others]
        place = "worksheet, row_number"
        location = "format('row %s of worksheet %s', row_number, worksheet)"

        def of_other(what: str) -> str:
            return f"CASE version WHEN 1 THEN first_value({what}) OVER newest ELSE first_value({what}) OVER oldest END"

        named_facts = [name for name in self._others if name not in self._spellings]
        differs = [f"CASE WHEN {name} IS DISTINCT FROM {of_other(name)} THEN :{name} END" for name in named_facts]
        # A separate table with statistics, so that the planner knows how few rows it has.
        if not self._execute(
            f"""
            CREATE TEMPORARY TABLE twice ON COMMIT DROP AS
            SELECT {key} FROM staging GROUP BY {key} HAVING count(*) > 1
            """
        ):
            return 0
        self._execute("ANALYZE twice")
        self._execute(
            f"""
            CREATE TEMPORARY TABLE repeated ON COMMIT DROP AS
            WITH member AS (SELECT staging.ctid AS position, etl_worksheet.worksheet, staging.*
                              FROM staging JOIN twice ON {self._same_key("staging", "twice")}
                                   JOIN etl_worksheet ON etl_worksheet.id = worksheet_id),
                 version AS (SELECT *, {version} AS version,
                                    count(*) OVER (PARTITION BY {_list([*self._key, *self._spellings])}) AS uses
                               FROM member)
            SELECT position, worksheet, row_number, {_list(self._columns)},
                   max(version) OVER (PARTITION BY {key}) > 1 AS is_contradiction,
                   {of_other(location)} AS other, concat_ws(', ', {_list(["NULL", *differs])}) AS differing,
                   row_number() OVER (PARTITION BY {key}
                                      ORDER BY {_list(["uses DESC", *texts, place])}) AS rank
              FROM version
            WINDOW newest AS (PARTITION BY {key} ORDER BY version DESC, {place}),
                   oldest AS (PARTITION BY {key} ORDER BY version, {place})
            """,
            **{name: self._dataset.filled[name] for name in named_facts},
        )
        headers = list(dict.fromkeys(self._dataset.filled[name] for name in self._key))
        # If the key is a single cell, report that cell.
        header, value = (headers[0], self._key[0].removesuffix("_key")) if len(headers) == 1 else (None, "NULL")
        rejected = self._execute(
            f"""
            INSERT INTO rejected_row (etl_run_id, sheet, worksheet, row_number, column_name, value, reason)
            SELECT :run_id, :sheet, worksheet, row_number, :column_name, {value},
                   format('the row has the same %s as %s, but another %s; keep one of them',
                          CAST(:headers AS text), other, differing)
              FROM repeated WHERE is_contradiction
            """,
            run_id=self._run_id,
            sheet=self._dataset.sheet,
            column_name=header,
            headers=", ".join(headers),
        )
        self._execute(f"INSERT INTO named SELECT {key} FROM repeated WHERE is_contradiction")
        self._execute(
            """
            DELETE FROM staging USING repeated
             WHERE staging.ctid = repeated.position AND (is_contradiction OR rank > 1)
            """
        )
        return rejected

    def compare(self) -> None:
        """Compare the table with the staged records; nothing else changes it until the end of the transaction."""
        # Readers proceed and other writers wait.
        self._execute(f"LOCK TABLE {self._target} IN SHARE ROW EXCLUSIVE MODE")
        differs = "false"
        if self._others:
            differs = f"({_list(self._others, 'target')}) IS DISTINCT FROM ({_list(self._others, 'staging')})"
        # The rows that no record names, and those that differ from their record. One join serves for both, because it
        # takes a third of the time of loading an unchanged worksheet.
        self._execute(
            f"""
            CREATE TEMPORARY TABLE different ON COMMIT DROP AS
            SELECT target.id, staging.ctid AS position
              FROM {self._target} AS target LEFT JOIN staging ON {self._same_key("staging", "target")}
             WHERE staging.ctid IS NULL OR {differs}
            """
        )

    def note_orphans(self) -> int:
        """Note the rows of the table that no row of the worksheets names; return how many no flow names.

        A rejected row names the table's row if its key is right, whatever its other cells are.
        """
        self._execute(
            f"""
            CREATE TEMPORARY TABLE unnamed ON COMMIT DROP AS
            SELECT id FROM different JOIN {self._target} AS target USING (id)
             WHERE position IS NULL AND NOT EXISTS (SELECT FROM named WHERE {self._same_key("named", "target")})
            """
        )
        note = {"table": self._target, "flow": self._dataset.name}
        self._execute(
            """
            DELETE FROM unnamed_row WHERE table_name = :table AND flow = :flow
               AND NOT EXISTS (SELECT FROM unnamed WHERE id = row_id)
            """,
            **note,
        )
        self._execute(
            """
            INSERT INTO unnamed_row (table_name, row_id, flow, etl_run_id)
            SELECT :table, id, :flow, :run_id FROM unnamed
            ON CONFLICT DO NOTHING
            """,
            **note,
            run_id=self._run_id,
        )
        orphans = select(func.count()).select_from(ORPHANED_ROW).where(ORPHANED_ROW.c.table_name == self._target)
        return self._connection.execute(orphans).scalar_one()

    def upsert(self) -> tuple[int, int]:
        """Insert the staged records that the table lacks, update those that differ; return both counts."""
        updated = inserted = 0
        if self._others:
            changes = [f"{name} = staging.{name}" for name in self._others]
            updated = self._execute(
                f"""
                UPDATE {self._target} AS target
                   SET {_list(changes)}, updated_at = now(),
                       changed_from = worksheet_id, row_number = staging.row_number
                  FROM different JOIN staging ON staging.ctid = position
                 WHERE target.id = different.id
                """
            )
        lacking = self._connection.execute(
            text(
                f"""
                SELECT (SELECT count(*) FROM staging) > (SELECT count(*) FROM {self._target})
                     - (SELECT count(*) FROM different WHERE position IS NULL)
                """
            )
        ).scalar_one()
        # Counting takes a tenth of the time of looking for what there is not.
        if lacking:
            inserted = self._execute(
                f"""
                INSERT INTO {self._target} ({_list(self._columns)}, inserted_from, changed_from, row_number)
                SELECT {_list(self._columns)}, worksheet_id, worksheet_id, row_number FROM staging
                 WHERE NOT EXISTS (SELECT FROM {self._target} AS target
                                    WHERE {self._same_key("staging", "target")})
                """
            )
        return inserted, updated

    def _create(self, table: str, columns: Mapping[str, str]) -> None:
        types = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
        self._execute(f"CREATE TEMPORARY TABLE {table} ({types}) ON COMMIT DROP")

    def _same_key(self, one: str, other: str) -> str:
        # IS NOT DISTINCT FROM treats null units as equal; only for nullable columns: PostgreSQL cannot hash it.
        return " AND ".join(
            f"{one}.{name} {'IS NOT DISTINCT FROM' if name in self._nullable else '='} {other}.{name}"
            for name in self._key
        )

    def _execute(self, statement: str, **parameters: object) -> int:
        """Run a statement; return how many rows it changed."""
        return self._connection.execute(
            text(statement), parameters, execution_options={"preserve_rowcount": True}
        ).rowcount

    def _copy(self, table: str, frame: pl.DataFrame) -> None:
        rows = io.BytesIO()
        frame.write_csv(rows, include_header=False)
        rows.seek(0)
        statement = f"COPY {table} ({_list(frame.columns)}) FROM STDIN (FORMAT csv)"
        driver = self._connection.connection
        try:
            with closing(driver.cursor()) as cursor:
                cursor.copy_expert(statement, rows)
        except psycopg2.Error as error:
            # Wrap the error as SQLAlchemy does for its own statements, so that callers handle one kind of error.
            if driver.dbapi_connection is None or driver.dbapi_connection.closed:
                self._connection.invalidate(error)
            kind = OperationalError if isinstance(error, psycopg2.OperationalError) else DBAPIError
            raise kind(statement, None, error) from error


def _list(names: Iterable[str], table: str = "") -> str:
    return ", ".join(f"{table}.{name}" if table else name for name in names)
