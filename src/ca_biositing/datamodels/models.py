"""The tables of biocirv_db, as SQLAlchemy declarative models.

Convention: a column ``x_key`` holds the case-folded text of the column ``x``, which keeps the spelling that people see.
A table that is loaded from worksheets has exactly one unique constraint besides its primary key: its natural key, by
which a load determines whether a row already exists. Migrations give it the triggers of ``keep_history``, which note
in ``row_history`` what a row was before it changed.
"""

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    Text,
    UniqueConstraint,
    column,
    func,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The declarative base; migrations are compared with its metadata."""

    # Without a convention PostgreSQL and alembic generate different names, and a migration can drop a constraint only
    # by its name.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        }
    )


class Record(Base):
    """A row that a flow loads from worksheets, and where it came from.

    ``inserted_from`` and ``changed_from`` are the ids in ``etl_worksheet`` of the worksheets that the row was inserted
    from, and that its present values are from; ``row_number`` is the row of the latter, as a spreadsheet showed it
    then. They are null for what was not written by a load, but by hand, or before these columns existed.
    """

    __abstract__ = True

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True, sort_order=-2)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now(), sort_order=1)
    # No foreign keys: checking them for each row would take longer than all else that provenance costs a load.
    inserted_from: Mapped[int | None] = mapped_column(sort_order=2)
    changed_from: Mapped[int | None] = mapped_column(sort_order=2)
    row_number: Mapped[int | None] = mapped_column(sort_order=2)


class NamedRecord(Record):
    """A record that other records refer to by its name; names are compared without regard to case."""

    __abstract__ = True

    name: Mapped[str] = mapped_column(Text, sort_order=-1)
    # The writer of the row computes it: PostgreSQL's lower() depends on the database's locale and is not Unicode case
    # folding.
    name_key: Mapped[str] = mapped_column(Text, unique=True, sort_order=-1)


class PrimaryProduct(NamedRecord):
    """A crop, or another primary product, that leaves a residue behind."""

    __tablename__ = "primary_product"


class AnalysisType(NamedRecord):
    """A kind of analysis that is done on a sample."""

    __tablename__ = "analysis_types"


class FieldSample(NamedRecord):
    """A sample of a residue as it was collected; ``amount_kg`` is in kilograms."""

    __tablename__ = "field_sample"
    __table_args__ = (CheckConstraint("amount_kg >= 0", name="amount_kg"),)

    residue: Mapped[str] = mapped_column(Text)
    residue_key: Mapped[str] = mapped_column(Text, index=True)
    primary_product_id: Mapped[int | None] = mapped_column(ForeignKey(PrimaryProduct.id), index=True)
    provider_code: Mapped[str] = mapped_column(Text)
    county: Mapped[str | None] = mapped_column(Text)
    collection_date: Mapped[date | None]
    amount_kg: Mapped[Decimal | None]


class Experiment(NamedRecord):
    """An experiment: one kind of analysis, begun on one day by one analyst."""

    __tablename__ = "experiment"

    analysis_type_id: Mapped[int | None] = mapped_column(ForeignKey(AnalysisType.id), index=True)
    start_date: Mapped[date | None]
    analyst: Mapped[str | None] = mapped_column(Text)


class Observation(Record):
    """A measured value as typed: ``value`` is exact, in ``unit``; a null unit counts as a distinct unit."""

    __tablename__ = "observation"
    __table_args__ = (
        UniqueConstraint(
            "field_sample_id",
            "experiment_id",
            "parameter_key",
            "unit",
            "replicate",
            name="uq_observation_natural_key",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint("replicate >= 1", name="replicate"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True, sort_order=-2)
    field_sample_id: Mapped[int] = mapped_column(ForeignKey(FieldSample.id))
    experiment_id: Mapped[int] = mapped_column(ForeignKey(Experiment.id), index=True)
    parameter: Mapped[str] = mapped_column(Text)
    parameter_key: Mapped[str] = mapped_column(Text)
    unit: Mapped[str | None] = mapped_column(Text)
    value: Mapped[Decimal] = mapped_column(Numeric)
    replicate: Mapped[int | None] = mapped_column(SmallInteger)


class EtlRun(Base):
    """The accounting of a flow run; all counts but ``orphaned`` are rows of worksheets.

    ``orphaned`` counts the rows of the table that no worksheet names. A run that is running or failed has loaded
    nothing into the database, and all its counts are 0. If it failed because too many rows were rejected, these are in
    ``rejected_row``.
    """

    __tablename__ = "etl_run"
    __table_args__ = (
        CheckConstraint("read = inserted + updated + unchanged + rejected", name="accounting"),
        CheckConstraint("least(inserted, updated, unchanged, rejected) >= 0", name="counts"),
        CheckConstraint("status IN ('running', 'completed', 'failed')", name="status"),
        CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished"),
        CheckConstraint("status = 'completed' OR read = 0", name="nothing_half_loaded"),
        Index("ix_etl_run_flow_started_at", "flow", "started_at"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    flow: Mapped[str] = mapped_column(Text)
    # The table that the flow loads; null for a run that loads none, or that is older than this column.
    table_name: Mapped[str | None] = mapped_column(Text)
    # Prefect's id; null for a run outside Prefect.
    flow_run_id: Mapped[UUID | None] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(Text)
    message: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    read: Mapped[int] = mapped_column(Integer, server_default="0")
    inserted: Mapped[int] = mapped_column(Integer, server_default="0")
    updated: Mapped[int] = mapped_column(Integer, server_default="0")
    unchanged: Mapped[int] = mapped_column(Integer, server_default="0")
    rejected: Mapped[int] = mapped_column(Integer, server_default="0")
    orphaned: Mapped[int] = mapped_column(Integer, server_default="0")


class RejectedRow(Base):
    """A worksheet's row that was not loaded, and why.

    ``row_number`` is as a spreadsheet shows it; ``column_name`` and ``value`` are those of the first problem, and are
    null if the problem is the row as a whole; ``reason`` names all problems.
    """

    __tablename__ = "rejected_row"
    __table_args__ = (UniqueConstraint("etl_run_id", "worksheet", "row_number"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    etl_run_id: Mapped[int] = mapped_column(ForeignKey(EtlRun.id, ondelete="CASCADE"))
    sheet: Mapped[str] = mapped_column(Text)
    worksheet: Mapped[str] = mapped_column(Text)
    row_number: Mapped[int]
    column_name: Mapped[str | None] = mapped_column(Text)
    value: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)


class EtlWorksheet(Base):
    """A worksheet that a run has read; rows refer to it as what they are from."""

    __tablename__ = "etl_worksheet"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    etl_run_id: Mapped[int] = mapped_column(ForeignKey(EtlRun.id, ondelete="CASCADE"), index=True)
    sheet: Mapped[str] = mapped_column(Text)
    worksheet: Mapped[str] = mapped_column(Text)


class UnnamedRow(Base):
    """A row of a table that the worksheets of a flow do not name, and the flow's run that first found it so.

    The view ``orphaned_row`` has the rows that no flow of their table names.
    """

    __tablename__ = "unnamed_row"

    table_name: Mapped[str] = mapped_column(Text, primary_key=True)
    row_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    flow: Mapped[str] = mapped_column(Text, primary_key=True)
    etl_run_id: Mapped[int] = mapped_column(ForeignKey(EtlRun.id, ondelete="CASCADE"), index=True)


class RowHistory(Base):
    """What a row of a table was before a change; triggers write it, and refuse every other writer.

    ``before`` is the whole row as JSON. ``changed_by`` is the login that made the change, by a load or by hand.
    """

    __tablename__ = "row_history"
    __table_args__ = (
        CheckConstraint("change IN ('update', 'delete')", name="change"),
        Index("ix_row_history_table_name_row_id", "table_name", "row_id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    table_name: Mapped[str] = mapped_column(Text)
    row_id: Mapped[int] = mapped_column(BigInteger)
    change: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    changed_by: Mapped[str] = mapped_column(Text, server_default=text("session_user"))
    before: Mapped[dict[str, object]] = mapped_column(JSONB)


# Of several flows that load one table, each notes the rows that it does not name.
ORPHANED_ROW = table(
    "orphaned_row",
    column("table_name", Text),
    column("row_id", BigInteger),
    column("etl_run_id", Integer),
)
