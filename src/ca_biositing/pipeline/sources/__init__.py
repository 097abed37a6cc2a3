"""The sources of worksheets: a folder of csv files, Excel workbooks, or Google Sheets."""

import os
from collections.abc import Mapping
from pathlib import Path

from ca_biositing.pipeline.sources.base import ExtractError, Source, SourceUnavailableError, Worksheet, alternatives

__all__ = ["ExtractError", "Source", "SourceUnavailableError", "Worksheet", "alternatives", "source_from_environment"]


def source_from_environment(environment: Mapping[str, str] = os.environ) -> Source:
    """Return the source that ``ETL_SOURCE`` names: ``csv`` (the default), ``xlsx`` or ``google``.

    The first two read the folder ``ETL_SOURCE_DIRECTORY``. The third reads Google Sheets with the service account
    key in the file ``CREDENTIALS_PATH``; requests go to ``ETL_GOOGLE_API_URL``, such as a gateway's, if it is set.

    Raises:
        ExtractError: a required variable is not set, or ``ETL_SOURCE`` is none of the three.

    """
    # Import only the one that is needed: openpyxl and gspread each take a noticeable fraction of a second.
    match environment.get("ETL_SOURCE") or "csv":
        case "csv":
            from ca_biositing.pipeline.sources.csv_folder import CsvFolder

            return CsvFolder(
                _path("ETL_SOURCE_DIRECTORY", "the folder that holds <sheet>/<worksheet>.csv", environment)
            )
        case "xlsx":
            from ca_biositing.pipeline.sources.workbook import WorkbookFolder

            return WorkbookFolder(_path("ETL_SOURCE_DIRECTORY", "the folder that holds <sheet>.xlsx", environment))
        case "google":
            from ca_biositing.pipeline.sources.google_sheets import GoogleSheets

            key = _path("CREDENTIALS_PATH", "the JSON key of a service account (docs/google.md)", environment)
            return GoogleSheets(key, environment.get("ETL_GOOGLE_API_URL"))
        case other:
            kinds = alternatives("source", other, ["csv", "google", "xlsx"])
            raise ExtractError(f"ETL_SOURCE is '{other}', which is no source. {kinds} Set it to one of them")


def _path(variable: str, what: str, environment: Mapping[str, str]) -> Path:
    if not environment.get(variable):
        raise ExtractError(f"{variable} is not set: set it to {what}")
    return Path(environment[variable])
