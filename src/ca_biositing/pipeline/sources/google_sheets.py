"""Sheets as Google Sheets, read with a service account."""

import json
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
from gspread.urls import DRIVE_FILES_API_V3_URL, SPREADSHEET_DRIVE_URL
from gspread.utils import MimeType, absolute_range_name
from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError
from urllib3 import Retry

from ca_biositing.pipeline.sources.base import ExtractError, SourceUnavailableError, Worksheet, alternatives
from ca_biositing.pipeline.sources.cells import row_texts

_SCOPES = (
    "https://www.googleapis.com/auth/spreadsheets.readonly",
    "https://www.googleapis.com/auth/drive.metadata.readonly",
)
_TEMPORARY = (408, 429, 500, 502, 503, 504)
# Drive also answers 403 when a quota is exhausted.
_QUOTA = ("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED")
_API_DISABLED = ("SERVICE_DISABLED", "accessNotConfigured")


@dataclass(frozen=True)
class GoogleSheets:
    """Google Sheets that are shared with a service account, found by their titles.

    ``credentials_path`` is the account's key file. ``api_url``, such as a gateway's, replaces Google's URL.
    A request that fails temporarily is retried ``retries`` times: at once, then after 2, 4, 8, ... times ``backoff``
    seconds, or after the time that Google requests, at most 2 minutes. The defaults outlast a quota per minute.
    ``timeout`` is the connect and read timeout, in seconds; Google's own timeout is 180.
    """

    credentials_path: Path
    api_url: str | None = None
    retries: int = 6
    backoff: float = 2
    timeout: tuple[float, float] = (10, 180)
    # Requests count against a quota, so each sheet is looked up once: sheet -> (id, worksheets).
    _found: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def worksheets(self, sheet: str) -> Sequence[str]:
        """Return the names of a sheet's worksheets; see :meth:`Source.worksheets`.

        Raises:
            SourceUnavailableError: Google does not answer or the quota is exhausted, even after retries.

        """
        return self._find(sheet)[1]

    @contextmanager
    def open(self, sheet: str, worksheet: str) -> Iterator[Worksheet]:
        """Read a worksheet, in one request; see :meth:`Source.open`.

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
            # Numbers unformatted; dates formatted, because serial numbers could not be distinguished from numbers.
            values = self._api.values_get(
                sheet_id,
                absolute_range_name(worksheet),
                {"valueRenderOption": "UNFORMATTED_VALUE", "dateTimeRenderOption": "FORMATTED_STRING"},
            ).get("values", [])
        remaining = iter(values)
        header = row_texts(next(remaining, []))
        if not header:
            raise ExtractError(f"{what} has no header: row 1 is empty. Put the names of the columns there")
        rows = (row_texts(row, len(header)) for row in remaining)
        yield Worksheet(sheet, worksheet, location, header, rows, lambda: 1 - length_hint(remaining) / len(values))

    def _find(self, sheet: str) -> tuple[str, Sequence[str]]:
        if sheet not in self._found:
            with self._api.explain_errors(f"Sheet '{sheet}'"):
                spreadsheets = self._api.spreadsheets()
                ids = [sheet_id for sheet_id, title in spreadsheets if title == sheet]
                if not ids:
                    raise ExtractError(
                        f"Sheet '{sheet}' is missing: no sheet of that title is shared with {self._api.email}. "
                        f"{alternatives('shared sheet', sheet, {title for _, title in spreadsheets})} "
                        f"Share it with {self._api.email} as Viewer, or give it that title"
                    )
                if len(ids) > 1:
                    raise ExtractError(
                        f"{len(ids)} sheets have the title '{sheet}': "
                        f"{', '.join(SPREADSHEET_DRIVE_URL % sheet_id for sheet_id in sorted(ids))}. "
                        f"Rename all but one, or stop sharing them with {self._api.email}"
                    )
                self._found[sheet] = ids[0], self._api.worksheets(ids[0])
        return self._found[sheet]

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

    def spreadsheets(self) -> Sequence[tuple[str, str]]:
        """Return the id and the title of each shared sheet that is not in the trash."""
        found: list[tuple[str, str]] = []
        params: ParamsType = {
            "q": f"mimeType = '{MimeType.google_sheets}' and trashed = false",
            "fields": "nextPageToken,files(id,name)",
            "pageSize": 1000,
            "supportsAllDrives": "true",
            "includeItemsFromAllDrives": "true",
        }
        while True:
            page = self.request("get", DRIVE_FILES_API_V3_URL, params=params).json()
            found += ((file["id"], file["name"]) for file in page.get("files", []))
            if "nextPageToken" not in page:
                return found
            params["pageToken"] = page["nextPageToken"]

    def worksheets(self, sheet_id: str) -> Sequence[str]:
        """Return the titles of a sheet's worksheets, sorted, without chart sheets."""
        answer = self.fetch_sheet_metadata(sheet_id, {"fields": "sheets.properties(title,sheetType)"})
        worksheets = (worksheet["properties"] for worksheet in answer.get("sheets", []))
        return sorted(worksheet["title"] for worksheet in worksheets if worksheet.get("sheetType") != "OBJECT")

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
