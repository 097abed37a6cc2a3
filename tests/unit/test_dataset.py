"""An invalid declaration of a dataset is refused when it is made, not at each load."""

import pytest

from ca_biositing.datamodels.models import AnalysisType, FieldSample, RejectedRow
from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.fields import Code, Field, Name, Text


@pytest.mark.parametrize(
    ("model", "columns", "words"),
    [
        (AnalysisType, {"Type": Name("nom")}, "analysis_types has no column nom, nom_key"),
        (AnalysisType, {"Type": Text("name")}, "no cell fills name_key of analysis_types"),
        (FieldSample, {"Name": Name("name"), "Code": Code("provider_code")}, "no cell fills residue, residue_key of"),
        (RejectedRow, {header: Text(header) for header in ("etl_run_id", "sheet", "worksheet")}, "row_number"),
    ],
)
def test_what_is_wrong_is_said(model: type[FieldSample], columns: dict[str, Field], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dataset(name="x", sheet="S", worksheets="W", columns=columns, model=model)


def test_a_table_needs_its_natural_key(monkeypatch: pytest.MonkeyPatch) -> None:
    table = AnalysisType.__table__
    monkeypatch.setattr(table, "constraints", set())
    with pytest.raises(ValueError, match="has 0 unique constraints; one is its natural key"):
        Dataset(name="x", sheet="S", worksheets="W", columns={"Type": Name("name")}, model=AnalysisType)
