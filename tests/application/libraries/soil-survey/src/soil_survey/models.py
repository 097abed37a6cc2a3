"""The tables of the survey."""

from sqlalchemy import BindParameter, ColumnElement, Double, ForeignKey, Text, UniqueConstraint, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType


class Point(UserDefinedType[str]):
    """A point in WGS 84; in Python its EWKT: "SRID=4326;POINT(longitude latitude)"."""

    cache_ok = True

    def get_col_spec(self, **_keywords: object) -> str:
        """Return the PostGIS type."""
        return "geometry(Point,4326)"

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        """Convert EWKT to a geometry."""
        return func.ST_GeomFromEWKT(bindvalue, type_=self)

    def column_expression(self, colexpr: ColumnElement[str]) -> ColumnElement[str]:
        """Convert a geometry to EWKT."""
        return func.ST_AsEWKT(colexpr, type_=self)


class Base(DeclarativeBase):
    """The survey's metadata."""


class Site(Base):
    """A place where a soil was described and sampled."""

    __tablename__ = "site"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    location: Mapped[str] = mapped_column(Point)


class Horizon(Base):
    """A layer of the soil at a site: depths in cm below the surface, bulk density in g/cm³."""

    __tablename__ = "horizon"
    __table_args__ = (UniqueConstraint("site_id", "top_cm"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    site_id: Mapped[int] = mapped_column(ForeignKey("site.id"))
    top_cm: Mapped[float] = mapped_column(Double)
    bottom_cm: Mapped[float] = mapped_column(Double)
    bulk_density: Mapped[float] = mapped_column(Double)
