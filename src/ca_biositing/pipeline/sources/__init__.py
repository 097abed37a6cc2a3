"""The sources of worksheets: folders of csv files, Excel workbooks, or Google Sheets."""

import os
from collections.abc import Mapping
from pathlib import Path

from ca_biositing.pipeline.sources.base import ExtractError, Source, SourceUnavailableError, Worksheet, alternatives

__all__ = ["ExtractError", "Source", "SourceUnavailableError", "Worksheet", "alternatives", "source_from_environment"]

_DIRECTORY = "ETL_SOURCE_DIRECTORY"
_HOW_TO_SET_THE_DIRECTORY = (
    ". Nothing was loaded. `make up SHEETS=folder` sets it for the local container; for hosts, set it in "
    "flow_environment of the inventory (docs/sheets.md)"
)


def source_from_environment(environment: Mapping[str, str] = os.environ) -> Source:
    """Return the source that ``ETL_SOURCE`` names: ``csv``, ``xlsx`` or ``google``.

    The first two read the folder ``ETL_SOURCE_DIRECTORY``, and so does an ``ETL_SOURCE`` that is unset or empty: it
    reads each sheet as what is there, csv files or a workbook. ``google`` reads Google Sheets with the service account
    key in the file ``CREDENTIALS_PATH``; requests go to ``ETL_GOOGLE_API_URL``, such as a gateway's, if it is set.

    Raises:
        ExtractError: a required variable is not set, or ``ETL_SOURCE`` is none of the three.

    """
    # Import only the one that is needed: gspread takes a noticeable fraction of a second.
    match environment.get("ETL_SOURCE"):
        case None | "":
            from ca_biositing.pipeline.sources.folder import Folder

            return Folder(_directory("<sheet>/<worksheet>.csv or <sheet>.xlsx", environment))
        case "csv":
            from ca_biositing.pipeline.sources.csv_folder import CsvFolder

            return CsvFolder(_directory("<sheet>/<worksheet>.csv", environment))
        case "xlsx":
            from ca_biositing.pipeline.sources.workbook import WorkbookFolder

            return WorkbookFolder(_directory("<sheet>.xlsx", environment))
        case "google":
            from ca_biositing.pipeline.sources.google_sheets import GoogleSheets

            key = _path("CREDENTIALS_PATH", "the JSON key of a service account (docs/google.md)", environment)
            return GoogleSheets(key, environment.get("ETL_GOOGLE_API_URL"))
        case other:
            kinds = alternatives("source", other, ["csv", "google", "xlsx"])
            raise ExtractError(f"ETL_SOURCE is '{other}', which is no source. {kinds} Set it to one of them")


def _directory(content: str, environment: Mapping[str, str]) -> Path:
    return _path(_DIRECTORY, f"the folder that holds {content}{_HOW_TO_SET_THE_DIRECTORY}", environment)


def _path(variable: str, what: str, environment: Mapping[str, str]) -> Path:
    if not environment.get(variable):
        raise ExtractError(f"{variable} is not set: set it to {what}")
    return Path(environment[variable])
