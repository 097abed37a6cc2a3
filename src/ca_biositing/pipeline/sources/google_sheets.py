"""Sheets as Google Sheets, read with a service account."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from operator import length_hint
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from google.auth.exceptions import RefreshError, TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2.service_account import Credentials
from gspread.exceptions import APIError
from gspread.http_client import HTTPClient, ParamsType
from gspread.urls import DRIVE_FILES_API_V3_URL, SPREADSHEET_DRIVE_URL, SPREADSHEET_URL
from gspread.utils import MimeType, absolute_range_name
from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError
from urllib3 import Retry

from ca_biositing.pipeline.sources.base import (
    ExtractError,
    Source,
    SourceUnavailableError,
    Worksheet,
    alternatives,
)
from ca_biositing.pipeline.sources.cells import (
    SERIAL_EPOCH,
    Cell,
    Hidden,
    Kind,
    Merge,
    Merges,
    Row,
    moment_text,
    number_cell,
    number_text,
    seen,
)

_SCOPES = (
    "https://www.googleapis.com/auth/spreadsheets.readonly",
    "https://www.googleapis.com/auth/drive.metadata.readonly",
)
_EXCEL = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
_EXCEL_SUFFIX = ".xlsx"
_SHORTCUT = "application/vnd.google-apps.shortcut"
_TEMPORARY = (408, 429, 500, 502, 503, 504)
# Drive also answers 403 when a quota is exhausted.
_QUOTA = ("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED")
_CLOCK = re.compile("[0-9]+:[0-9]{2}(:[0-9]{2})?([.,][0-9]+)?( ?[APap][Mm])?")
_API_DISABLED = ("SERVICE_DISABLED", "accessNotConfigured")


@dataclass(frozen=True)
class _File:
    """A file in Google Drive. ``sheet_id`` is None for one that is no Google Sheet, and leads to none."""

    title: str
    sheet_id: str | None
    is_workbook: bool


@dataclass(frozen=True)
class _Grid:
    """The rows of a worksheet up to the last one that is not empty. ``is_loading``: a cell is not calculated yet."""

    rows: Sequence[Row]
    is_loading: bool
    hidden: Hidden


@dataclass(frozen=True)
class GoogleSheets(Source):
    """Google Sheets that are shared with a service account, found by their titles.

    ``credentials_path`` is the account's key file. ``api_url``, such as a gateway's, replaces Google's URL.
    A request that fails temporarily is retried ``retries`` times: at once, then after 2, 4, 8, ... times ``backoff``
    seconds, or after the time that Google requests, at most 2 minutes. The defaults outlast a quota per minute.
    ``timeout`` is the connect and read timeout, in seconds; Google's own timeout is 180.
    With ``sheet_id``, the sheet of that id is the only one, under any title.
    """

    credentials_path: Path
    api_url: str | None = None
    retries: int = 6
    backoff: float = 2
    timeout: tuple[float, float] = (10, 180)
    sheet_id: str | None = None
    # Requests count against a quota, so each sheet is looked up once: sheet -> (id, worksheets with their ids).
    _found: dict[str, tuple[str, Mapping[str, int]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`.

        Raises:
            SourceUnavailableError: Google does not answer or the quota is exhausted, even after retries.

        """
        return sorted(self._find(sheet)[1])

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Read a worksheet, in one request; see :meth:`Source.open`.

        While Google is still calculating cells, the worksheet is read again, as often as a request that fails.

        Raises:
            SourceUnavailableError: Google does not answer or the quota is exhausted, even after retries.

        """
        sheet_id, present = self._find(sheet)
        location = SPREADSHEET_DRIVE_URL % sheet_id
        if worksheet not in present:
            raise ExtractError(
                f"Worksheet '{worksheet}' of sheet '{sheet}' is missing: it is not in {location}. "
                f"{alternatives('worksheet', worksheet, present)} Give the worksheet that name in the sheet"
            )
        what = f"Worksheet '{worksheet}' of sheet '{sheet}' ({location})"
        with self._api.explain_errors(what):
            grid = self._api.grid(sheet_id, worksheet)
            for attempt in range(self.retries):
                if not grid.is_loading:
                    break
                # Google calculates on; the intervals are those between requests that fail.
                time.sleep(self.backoff * 2**attempt)
                grid = self._api.grid(sheet_id, worksheet)
        remaining = iter(grid.rows)
        header = [seen(cell) for cell in next(remaining, Row({}))]
        if not header:
            raise ExtractError(f"{what} has no header: row 1 is empty. Put the names of the columns there")
        total = len(grid.rows)
        yield Worksheet(
            sheet,
            worksheet,
            location,
            header,
            remaining,
            lambda: 1 - length_hint(remaining) / total,
            lambda: grid.hidden.notes(header),
        )

    def link(self, sheet: str, worksheet: str) -> str:
        """Return the address of a worksheet; see :meth:`Source.link`."""
        sheet_id, present = self._find(sheet)
        return f"{SPREADSHEET_DRIVE_URL % sheet_id}/edit#gid={present[worksheet]}" if worksheet in present else ""

    def _find(self, sheet: str) -> tuple[str, Mapping[str, int]]:
        if sheet not in self._found:
            with self._api.explain_errors(f"Sheet '{sheet}'"):
                sheet_id = self.sheet_id or self._id(sheet)
                self._found[sheet] = sheet_id, self._api.worksheets(sheet_id)
        return self._found[sheet]

    def _id(self, sheet: str) -> str:
        """Return the id of the sheet that has this title, or that a shortcut of this title leads to."""
        files = self._api.files()
        ids = {file.sheet_id for file in files if file.title == sheet and file.sheet_id}
        if not ids and any(file.title.removesuffix(_EXCEL_SUFFIX) == sheet for file in files if file.is_workbook):
            raise ExtractError(
                f"Sheet '{sheet}' is an Excel workbook in Google Drive, which Google's API does not read. "
                "Open it in Google Sheets, choose File, Save as Google Sheets, and share that with "
                f"{self._api.email} as Viewer under the same title"
            )
        if not ids:
            raise ExtractError(
                f"Sheet '{sheet}' is missing: no sheet of that title is shared with {self._api.email}. "
                f"{alternatives('shared sheet', sheet, {file.title for file in files if file.sheet_id})} "
                f"Share it with {self._api.email} as Viewer, or give it that title"
            )
        if len(ids) > 1:
            raise ExtractError(
                f"{len(ids)} sheets have the title '{sheet}': "
                f"{', '.join(SPREADSHEET_DRIVE_URL % sheet_id for sheet_id in sorted(ids))}. "
                f"Rename all but one, or stop sharing them with {self._api.email}"
            )
        return ids.pop()

    @cached_property
    def _api(self) -> "_Api":
        return _Api(self)


class _Api(HTTPClient):
    """The requests to Google's APIs, with retries and error messages."""

    def __init__(self, settings: GoogleSheets) -> None:
        self._settings = settings
        credentials, info = _read_credentials(settings.credentials_path)
        self.email = info["client_email"]
        # google-auth retries refused token requests with its own delays; raising on the status prevents that.
        tokens = Session()
        # In a thread, google-auth also looks up the account's allowed regions. That is not needed, and must not
        # disclose a gateway's token, so this session can only reach the token URI.
        tokens.adapters.clear()
        tokens.mount(info["token_uri"], self._adapter(raise_on_status=True))
        session = AuthorizedSession(credentials, auth_request=Request(tokens))  # type: ignore[no-untyped-call]
        for scheme in ("https://", "http://"):
            session.mount(scheme, self._adapter(raise_on_status=False))
        super().__init__(credentials, session)
        self.set_timeout(settings.timeout)

    def _adapter(self, *, raise_on_status: bool) -> HTTPAdapter:
        return HTTPAdapter(
            max_retries=Retry(
                total=self._settings.retries,
                other=0,  # such as a certificate that is not trusted
                allowed_methods=None,  # also retry POST, which token requests use
                status_forcelist=_TEMPORARY,
                backoff_factor=self._settings.backoff,
                retry_after_max=120,
                raise_on_status=raise_on_status,
            )
        )

    def request(self, method: str, endpoint: str, *args: Any, **kwargs: Any) -> Response:  # noqa: ANN401 - passed on
        if self._settings.api_url:
            endpoint = self._settings.api_url.rstrip("/") + urlsplit(endpoint).path
        try:
            return super().request(method, endpoint, *args, **kwargs)
        except ChunkedEncodingError:
            # urllib3 does not retry when the connection breaks while the response body is read.
            return super().request(method, endpoint, *args, **kwargs)

    def files(self) -> Sequence[_File]:
        """Return the shared sheets, workbooks and shortcuts that are not in the trash."""
        found: list[_File] = []
        kinds = " or ".join(f"mimeType = '{kind}'" for kind in (MimeType.google_sheets, _EXCEL, _SHORTCUT))
        params: ParamsType = {
            "q": f"({kinds}) and trashed = false",
            "fields": "nextPageToken,files(id,name,mimeType,shortcutDetails(targetId,targetMimeType))",
            "pageSize": 1000,
            "supportsAllDrives": "true",
            "includeItemsFromAllDrives": "true",
        }
        while True:
            page = self.request("get", DRIVE_FILES_API_V3_URL, params=params).json()
            for file in page.get("files", []):
                target = file.get("shortcutDetails", {"targetId": file["id"], "targetMimeType": file["mimeType"]})
                kind = target.get("targetMimeType")
                sheet_id = target.get("targetId") if kind == MimeType.google_sheets else None
                found.append(_File(file["name"], sheet_id, is_workbook=kind == _EXCEL))
            if "nextPageToken" not in page:
                return found
            params["pageToken"] = page["nextPageToken"]

    def worksheets(self, sheet_id: str) -> Mapping[str, int]:
        """Return the titles of a sheet's worksheets, without chart sheets, each with its id."""
        answer = self.fetch_sheet_metadata(sheet_id, {"fields": "sheets.properties(title,sheetType,sheetId)"})
        worksheets = (worksheet["properties"] for worksheet in answer.get("sheets", []))
        return {each["title"]: each.get("sheetId", 0) for each in worksheets if each.get("sheetType") != "OBJECT"}

    def grid(self, sheet_id: str, worksheet: str) -> _Grid:
        """Return the cells of a worksheet, in one request, so that they are of one moment."""
        # Only here the API tells dates from numbers, what people see of both, formulas, and merged cells.
        cell = (
            "effectiveValue,formattedValue,effectiveFormat(numberFormat(type),textFormat(strikethrough)),"
            "userEnteredValue(formulaValue),textFormatRuns(format(strikethrough))"
        )
        hidden_rows, hidden_columns = "rowMetadata(hiddenByUser,hiddenByFilter)", "columnMetadata(hiddenByUser)"
        fields = f"sheets(properties(hidden),merges,data(rowData(values({cell})),{hidden_rows},{hidden_columns}))"
        params: ParamsType = {"ranges": absolute_range_name(worksheet), "fields": fields}
        answer = self.request("get", SPREADSHEET_URL % sheet_id, params=params)
        # Cell by cell, because the objects of a whole worksheet would take ten times its memory.
        (sheet,) = json.loads(answer.content, object_hook=_cell)["sheets"]
        merges = Merges(
            Merge(
                each.get("startRowIndex", 0) + 1,
                each.get("startColumnIndex", 0),
                each["endRowIndex"],
                each["endColumnIndex"] - 1,
            )
            for each in sheet.get("merges", [])
        )
        rows: list[Row] = []
        is_loading = False
        data = sheet.get("data", [{}])[0]
        for number, line in enumerate(data.get("rowData", []), start=1):
            cells = {column: cell for column, cell in enumerate(line.get("values", [])) if cell}
            is_loading = is_loading or any(
                isinstance(cell, Cell) and cell.kind is Kind.LOADING for cell in cells.values()
            )
            merges.cover(number, cells)
            rows.append(Row(cells))
        while rows and not rows[-1]:
            rows.pop()
        hidden = Hidden(
            sheet.get("properties", {}).get("hidden", False),
            # Only an entry of something hidden has a key.
            [
                number
                for (number, each), row in zip(enumerate(data.get("rowMetadata", []), 1), rows, strict=False)
                if each and row
            ],
            {column for column, each in enumerate(data.get("columnMetadata", [])) if each},
        )
        return _Grid(rows, is_loading, hidden)

    @contextmanager
    def explain_errors(self, what: str) -> Iterator[None]:
        """Convert errors in reading ``what`` to an ``ExtractError`` that says what to do."""
        retries = f"also after {self._settings.retries} retries"
        try:
            yield
        except APIError as error:
            code, said = error.response.status_code, json.dumps(error.error)
            reason = f"{code}: {_short(error.error.get('message'))}"
            if code == 429 or (code == 403 and any(word in said for word in _QUOTA)):
                raise SourceUnavailableError(
                    f"{what} cannot be read at the moment: the quota of Google's API is used up, {retries} ({reason}). "
                    "Run the flow again later, and fewer flows at once"
                ) from error
            if code in _TEMPORARY:
                raise SourceUnavailableError(
                    f"{what} cannot be read at the moment: Google's API fails, {retries} ({reason}). "
                    "Run the flow again later"
                ) from error
            if any(word in said for word in _API_DISABLED):
                raise ExtractError(
                    f"{what} cannot be read: an API is not enabled in the Google Cloud project of {self.email} "
                    f"({reason}). Enable the Google Sheets API and the Google Drive API there, and wait some minutes"
                ) from error
            if error.code in (403, 404):
                raise ExtractError(
                    f"{what} may not be read by {self.email} ({reason}). Share the sheet with {self.email} as Viewer"
                ) from error
            raise ExtractError(
                f"{what} cannot be read: Google's API refuses ({reason}). Compare the setup with docs/google.md"
            ) from error
        except RefreshError as error:
            path = self._settings.credentials_path
            if error.retryable:
                raise SourceUnavailableError(
                    f"{what} cannot be read at the moment: Google gives no access token ({_short(error.args[0])}). "
                    "Run the flow again later"
                ) from error
            raise ExtractError(
                f"{what} cannot be read: Google refuses the key of {self.email} ({_short(error.args[0])}). "
                "Look whether the clock of this machine is right: a key is refused where it is minutes off. If it is, "
                f"the key or the account was deleted or disabled: make a new key, and put it into {path}"
            ) from error
        except (RequestException, TransportError) as error:
            raise SourceUnavailableError(
                f"{what} cannot be read at the moment: no usable answer from Google's API "
                f"({_short(_innermost(error))}). Check the network, the proxy (HTTPS_PROXY) and its certificate "
                "(REQUESTS_CA_BUNDLE), and run the flow again later"
            ) from error


def _cell(found: dict[str, Any]) -> Any:  # noqa: ANN401 - an object of JSON
    """Return a cell's object as text, any other as it is."""
    value = found.get("effectiveValue")
    if value is None:
        # An empty cell has at most a format.
        return "" if found.keys() & {"effectiveFormat", "userEnteredValue"} else found
    cell = _valued(found, value)
    runs = found.get("textFormatRuns", [])
    formats = [found.get("effectiveFormat", {}).get("textFormat", {}), *(run.get("format", {}) for run in runs)]
    if cell and any(each.get("strikethrough") for each in formats):
        return Cell(cell, Kind.STRUCK, found.get("formattedValue"), is_idle=isinstance(cell, Cell) and cell.is_idle)
    return cell


def _valued(found: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """Return a cell's object that has a value as text."""
    shown = found.get("formattedValue", "")
    is_formula = "userEnteredValue" in found
    match value:
        case {"stringValue": text}:
            # A format may show a text in another way.
            return str(found.get("formattedValue", text))
        case {"boolValue": is_true}:
            return Cell("TRUE" if is_true else "FALSE", Kind.BOOLEAN, shown, is_idle=not is_true)
        case {"errorValue": error}:
            kind = Kind.LOADING if error.get("type") == "LOADING" else Kind.ERROR
            return Cell(shown or "#ERROR!", kind, shown)
        case {"numberValue": number}:
            form = found.get("effectiveFormat", {}).get("numberFormat", {}).get("type")
            is_idle = is_formula and number == 0
            if form in ("DATE", "TIME", "DATE_TIME"):
                # A duration such as 48:00 would otherwise be a day of 1900.
                is_time = form == "TIME" or _CLOCK.fullmatch(shown)
                moment = None if is_time else moment_text(number, SERIAL_EPOCH)
                return Cell(moment or shown, Kind.DATE, shown, is_idle=is_idle)
            return number_cell(number_text(number), shown, points=".,", is_idle=is_idle)
    return ""


def _read_credentials(path: Path) -> tuple[Credentials, Mapping[str, str]]:
    what = f"The credentials file {path} (CREDENTIALS_PATH)"
    advice = "Make a JSON key for a service account in the Google Cloud console, and put it there (docs/google.md)"
    try:
        info = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ExtractError(f"{what} is not there. {advice}, or set CREDENTIALS_PATH to where it is") from None
    except OSError as error:
        raise ExtractError(
            f"{what} cannot be read: {error.strerror}. Give the account that runs the flow the right to read it"
        ) from error
    except ValueError:
        raise ExtractError(f"{what} is not JSON. {advice}") from None  # a chained error would contain the file's text
    if not isinstance(info, dict) or info.get("type") != "service_account":
        raise ExtractError(f"{what} is not a service account's key but {_kind(info)}. {advice}")
    if lacking := [name for name in ("client_email", "private_key", "token_uri") if not info.get(name)]:
        raise ExtractError(f"{what} is incomplete: it lacks {', '.join(lacking)}. {advice}")
    try:
        credentials = Credentials.from_service_account_info(info, scopes=_SCOPES)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise ExtractError(f"{what} is damaged: its private_key is no key. {advice}") from None
    return credentials, info


def _kind(info: object) -> str:
    match info:
        case {"installed": _} | {"web": _}:
            return "an OAuth client's secret, which is for people who log in with a browser"
        case {"type": "authorized_user"}:
            return "a person's login (authorized_user)"
        case {"type": str(kind)}:
            return f"of type '{kind}'"
    return "something else"


def _innermost(error: BaseException) -> BaseException:
    """Return urllib3's error, which requests and google-auth have wrapped."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return getattr(error, "reason", None) or error


def _short(said: object) -> str:
    """Return a message as one line of bounded length: a gateway or proxy may answer with a whole page."""
    line = " ".join(str(said).split())
    return line if len(line) <= 400 else line[:400] + " ..."
