"""A fake of the used parts of Google's API: the token endpoint, Drive's list of files, Sheets' values.

It is as strict as Google: it checks a token request's signature and scopes, and refuses requests without a token
that it has issued.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import cast
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.auth import jwt

EMAIL = "etl@project.iam.gserviceaccount.com"
SCOPES = {
    "https://www.googleapis.com/auth/spreadsheets.readonly",
    "https://www.googleapis.com/auth/drive.metadata.readonly",
}
AUDIENCE = "https://oauth2.googleapis.com/token"  # in google-auth's token requests, whatever their URL
FILES_PER_PAGE = 2
SPREADSHEET = "application/vnd.google-apps.spreadsheet"
EXCEL = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
SHORTCUT = "application/vnd.google-apps.shortcut"
HANG_UP = 0

Answer = tuple[int, object]


@dataclass
class Spreadsheet:
    """A spreadsheet that is shared with the account: worksheets are rows of cells, or None for a chart.

    A cell is a value, or the API's object of a cell. ``merges`` are the API's ranges. ``kind`` and ``target`` are those
    of another file in Drive, and of the file that a shortcut leads to. ``hidden_rows`` are counted from 1,
    ``hidden_columns`` from 0.
    """

    id: str
    title: str
    worksheets: Mapping[str, Sequence[Sequence[object]] | None]
    trashed: bool = False
    merges: Sequence[Mapping[str, int]] = ()
    kind: str = SPREADSHEET
    target: str | None = None
    is_hidden: bool = False
    hidden_rows: Sequence[int] = ()
    hidden_columns: Sequence[int] = ()


@dataclass
class _Failure:
    path: str
    answer: Answer
    times: int
    headers: Mapping[str, str]


class RefusedError(Exception):
    """A request that Google would refuse."""

    def __init__(self, status: int, message: str, code: str, **details: str) -> None:
        body = {"error": {"code": status, "message": message, "status": code, "details": [details]}}
        self.answer: Answer = status, body


@cache
def private_key() -> rsa.RSAPrivateKey:
    """Return the account's key, made once per test run."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class GoogleApi(ThreadingHTTPServer):
    """The fake server. ``log`` has the path of each request, ``revoked`` is the reason to refuse the key."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spreadsheets: list[Spreadsheet] = []
        self.log: list[str] = []
        self.tokens: set[str] = set()
        self.revoked = ""
        self.failures: list[_Failure] = []

    @property
    def credentials(self) -> dict[str, str]:
        """The key file, as downloaded from Google's console."""
        pem = private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key": pem.decode(),
            "client_email": EMAIL,
            "token_uri": f"{self.url}/token",
        }

    def fail(
        self, path: str, answer: RefusedError | Answer, *, times: int = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        """Set the response to the next requests with this path prefix; the status HANG_UP closes the connection."""
        status_and_body = answer.answer if isinstance(answer, RefusedError) else answer
        self.failures.append(_Failure(path, status_and_body, times, headers or {}))

    def asked(self, path: str) -> int:
        """Return the number of requests with this path prefix."""
        return sum(line.startswith(path) for line in self.log)

    def answer(self, path: str, query: Mapping[str, str], authorization: str) -> tuple[Answer, Mapping[str, str]]:
        """Return the response to a request: status and body, and headers."""
        for failure in self.failures:
            if failure.times and path.startswith(failure.path):
                failure.times -= 1
                return failure.answer, failure.headers
        try:
            return self._answer(path, query, authorization), {}
        except RefusedError as refused:
            return refused.answer, {}
        except (AssertionError, LookupError, ValueError) as unexpected:
            return (400, f"The stand-in does not know that: {unexpected!r}"), {}

    def _answer(self, path: str, query: Mapping[str, str], authorization: str) -> Answer:
        if path == "/token":
            return self._token(query)
        if authorization.removeprefix("Bearer ") not in self.tokens:
            raise RefusedError(401, "Request had invalid authentication credentials.", "UNAUTHENTICATED")
        if path == "/drive/v3/files":
            return 200, self._files(query)
        if path.startswith("/v4/spreadsheets/"):
            return 200, self._spreadsheet(path.split("/")[3:], query)
        return 404, "<html>Not Found</html>"

    def _token(self, form: Mapping[str, str]) -> Answer:
        public_key = private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        claims = jwt.decode(form["assertion"], certs=public_key, audience=AUDIENCE)  # type: ignore[no-untyped-call]
        assert claims["iss"] == EMAIL
        assert set(claims["scope"].split()) == SCOPES
        if self.revoked:
            return 400, {"error": "invalid_grant", "error_description": self.revoked}
        token = f"token-{len(self.log)}"
        self.tokens.add(token)
        return 200, {"access_token": token, "expires_in": 3599, "token_type": "Bearer"}

    def _files(self, query: Mapping[str, str]) -> object:
        kinds = " or ".join(f"mimeType = '{kind}'" for kind in (SPREADSHEET, EXCEL, SHORTCUT))
        assert query["q"] == f"({kinds}) and trashed = false"
        assert query["fields"] == "nextPageToken,files(id,name,mimeType,shortcutDetails(targetId,targetMimeType))"
        found = [self._file(each) for each in self.spreadsheets if not each.trashed]
        start = int(query.get("pageToken", "0"))
        end = start + FILES_PER_PAGE
        return {"files": found[start:end], **({"nextPageToken": str(end)} if end < len(found) else {})}

    def _file(self, sheet: Spreadsheet) -> object:
        file = {"id": sheet.id, "name": sheet.title, "mimeType": sheet.kind}
        if not sheet.target:
            return file
        kind = next((each.kind for each in self.spreadsheets if each.id == sheet.target), SPREADSHEET)
        return {**file, "shortcutDetails": {"targetId": sheet.target, "targetMimeType": kind}}

    def _spreadsheet(self, path: Sequence[str], query: Mapping[str, str]) -> object:
        (sheet_id,) = path
        sheet = next((each for each in self.spreadsheets if each.id == sheet_id and each.kind == SPREADSHEET), None)
        if sheet is None:
            raise RefusedError(404, "Requested entity was not found.", "NOT_FOUND")
        if "ranges" not in query:
            assert query["fields"] == "sheets.properties(title,sheetType,sheetId)"
            kinds = {name: "OBJECT" if rows is None else "GRID" for name, rows in sheet.worksheets.items()}
            properties = [{"title": name, "sheetType": kind} for name, kind in kinds.items()]
            # Google's JSON lacks what is zero.
            return {
                "sheets": [{"properties": each | ({"sheetId": n} if n else {})} for n, each in enumerate(properties)]
            }
        assert query["fields"] == (
            "sheets(properties(hidden),merges,data(rowData(values(effectiveValue,formattedValue,"
            "effectiveFormat(numberFormat(type),textFormat(strikethrough)),userEnteredValue(formulaValue),"
            "textFormatRuns(format(strikethrough)))),"
            "rowMetadata(hiddenByUser,hiddenByFilter),columnMetadata(hiddenByUser)))"
        )
        quoted = query["ranges"]
        assert quoted[0] == quoted[-1] == "'"
        rows = sheet.worksheets.get(quoted[1:-1].replace("''", "'"))
        if rows is None:
            raise RefusedError(400, f"Unable to parse range: {quoted}", "INVALID_ARGUMENT")
        data = [{"values": [_shown(cell) for cell in row]} if row else {} for row in rows]
        # Cells that are empty but formatted are sent.
        data.append({"values": [{"effectiveFormat": {"numberFormat": {"type": "TEXT"}}}]})
        grid = {
            "rowData": data,
            "rowMetadata": [{"hiddenByUser": True} if n in sheet.hidden_rows else {} for n in range(1, 1001)],
            "columnMetadata": [{"hiddenByUser": True} if n in sheet.hidden_columns else {} for n in range(26)],
        }
        others = {"merges": sheet.merges, "properties": {"hidden": True} if sheet.is_hidden else {}}
        return {"sheets": [{"data": [grid], **{name: each for name, each in others.items() if each}}]}


@contextmanager
def google_api() -> Iterator[GoogleApi]:
    """Serve the fake API."""
    with GoogleApi() as api:
        thread = Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()


def _shown(cell: object) -> object:
    """Return the API's object of a cell: a date with the format ISO 8601, a number without a format."""
    match cell:
        case dict():
            return cell
        case None | "":
            return {}
        case bool():
            return {"effectiveValue": {"boolValue": cell}, "formattedValue": str(cell).upper()}
        case date():
            days = (datetime(cell.year, cell.month, cell.day) - datetime(1899, 12, 30)).days
            return {
                "effectiveValue": {"numberValue": days},
                "formattedValue": cell.isoformat(),
                "effectiveFormat": {"numberFormat": {"type": "DATE"}},
            }
        case int() | float():
            shown = format(Decimal(format(cell + 0, ".10g")), "f")
            return {"effectiveValue": {"numberValue": cell}, "formattedValue": shown}
    return {"effectiveValue": {"stringValue": cell}, "formattedValue": cell}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response in two packets takes 40 ms longer

    def _handle(self) -> None:
        api = cast("GoogleApi", self.server)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        url = urlsplit(self.path)
        api.log.append(self.path if self.command == "CONNECT" else url.path)
        query = {name: values[0] for name, values in parse_qs(form or url.query).items()}
        (status, content), headers = api.answer(url.path, query, self.headers.get("Authorization", ""))
        if status == HANG_UP:
            self.close_connection = True
            return
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_CONNECT = _handle  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass
