"""The tables of biocirv_db, as SQLAlchemy declarative models."""

from datetime import datetime

from sqlalchemy import DateTime, Identity, MetaData, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The declarative base: its metadata is what migrations are compared with."""

    # Without a convention PostgreSQL and alembic invent different names, and a constraint
    # that has no known name cannot be dropped by a later migration.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        }
    )


class NamedRecord(Base):
    """A controlled vocabulary: one row per distinct name.

    Two spellings that differ only in case are one name. ``name`` is the spelling people see;
    ``name_key`` is what makes it unique, computed by whoever writes the row: PostgreSQL's
    ``lower()`` depends on the database's locale and does not fold as Unicode says.
    """

    __abstract__ = True

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    name_key: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class PrimaryProduct(NamedRecord):
    """A crop, or another primary product, that leaves a residue behind."""

    __tablename__ = "primary_product"


class AnalysisType(NamedRecord):
    """A kind of analysis that is done on a sample."""

    __tablename__ = "analysis_types"
