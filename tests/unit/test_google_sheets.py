"""Reading Google Sheets from a fake of Google's API over real HTTP, and the error messages."""

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ca_biositing.pipeline.sources import ExtractError, SourceUnavailableError, source_from_environment
from ca_biositing.pipeline.sources.google_sheets import GoogleSheets
from tests.unit.google_api import EMAIL, EXCEL, HANG_UP, SHORTCUT, GoogleApi, RefusedError, Spreadsheet, google_api

DISABLED = RefusedError(
    403,
    "Google Sheets API has not been used in project 123 before or it is disabled. Enable it by visiting <address>",
    "PERMISSION_DENIED",
    reason="SERVICE_DISABLED",
    domain="googleapis.com",
)
DENIED = RefusedError(403, "The caller does not have permission", "PERMISSION_DENIED")
QUOTA = RefusedError(429, "Quota exceeded for quota metric 'Read requests'", "RESOURCE_EXHAUSTED")
USAGE_LIMIT = RefusedError(403, "User Rate Limit Exceeded", "PERMISSION_DENIED", reason="userRateLimitExceeded")
BROKEN = RefusedError(503, "The service is currently unavailable.", "UNAVAILABLE")


@pytest.fixture
def api() -> Iterator[GoogleApi]:
    """Serve the fake API with one sheet."""
    with google_api() as api:
        api.spreadsheets = [
            Spreadsheet("1lab", "Lab", {"Samples": [["Name", "Crop"], ["a", "Rice"], [], ["b"]], "Chart": None})
        ]
        yield api


@pytest.fixture
def source(api: GoogleApi, tmp_path: Path) -> GoogleSheets:
    """Return the source that reads from the fake API."""
    key = tmp_path / "credentials.json"
    key.write_text(json.dumps(api.credentials), encoding="utf-8")
    return GoogleSheets(key, api.url, retries=2, backoff=0.001)


def read(source: GoogleSheets, sheet: str = "Lab", worksheet: str = "Samples") -> list[list[str]]:
    """Return a worksheet's header and rows."""
    with source.open(sheet, worksheet) as opened:
        return [list(opened.header), *map(list, opened.rows)]


def refusal(read: Callable[[], object], *parts: str, kind: type[ExtractError] = ExtractError) -> str:
    """Return the error message, which must contain these parts."""
    with pytest.raises(ExtractError) as caught:
        read()
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value)
    assert "PRIVATE KEY" not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_a_worksheet_is_read(api: GoogleApi, source: GoogleSheets) -> None:
    """A worksheet takes one request; the list of worksheets is requested once."""
    assert read(source) == [["Name", "Crop"], ["a", "Rice"], [], ["b"]]
    assert source.worksheets("Lab") == ["Samples"]
    read(source)

    assert api.log == [
        "/token",
        "/drive/v3/files",
        "/v4/spreadsheets/1lab",
        "/v4/spreadsheets/1lab",
        "/v4/spreadsheets/1lab",
    ]


def test_progress_is_the_share_of_rows(source: GoogleSheets) -> None:
    with source.open("Lab", "Samples") as worksheet:
        progress = [worksheet.progress()] + [worksheet.progress() for _ in worksheet.rows]

    assert progress == [0.25, 0.5, 0.75, 1.0]
    assert worksheet.location == "https://docs.google.com/spreadsheets/d/1lab"


def test_a_worksheet_has_an_address(api: GoogleApi, source: GoogleSheets) -> None:
    """Rejected rows link to it."""
    api.spreadsheets.append(Spreadsheet("1field", "Field", {"Plots": [["Name"]], "Notes": [["Text"]]}))

    assert source.link("Lab", "Samples") == "https://docs.google.com/spreadsheets/d/1lab/edit#gid=0"
    assert source.link("Field", "Notes") == "https://docs.google.com/spreadsheets/d/1field/edit#gid=1"
    assert source.link("Field", "Gone") == ""


def test_a_shortcut_leads_to_its_sheet(api: GoogleApi, source: GoogleSheets) -> None:
    """Beside the sheet itself, or where only the shortcut is listed."""
    api.spreadsheets.append(Spreadsheet("1cut", "Lab", {}, kind=SHORTCUT, target="1lab"))
    assert read(source)[0] == ["Name", "Crop"]
    api.spreadsheets.append(Spreadsheet("1far", "Far", {}, kind=SHORTCUT, target="1lab"))
    assert read(source, "Far")[0] == ["Name", "Crop"]


@pytest.mark.parametrize("title", ["Field", "Field.xlsx"])
def test_a_workbook_in_drive_is_named_as_such(api: GoogleApi, source: GoogleSheets, title: str) -> None:
    api.spreadsheets.append(Spreadsheet("1field", title, {}, kind=EXCEL))
    refusal(
        lambda: read(source, "Field"), "'Field' is an Excel workbook in Google Drive", "Save as Google Sheets", EMAIL
    )


@pytest.mark.parametrize("name", ["A1", 'it\'s "50 %" / b?c#d&e', "01-BasicSampleInfo", "Größe 米"])
def test_any_title_is_found(api: GoogleApi, source: GoogleSheets, name: str) -> None:
    """Characters that are special in Drive's queries or cell ranges are escaped, and all result pages are searched."""
    api.spreadsheets += [Spreadsheet(f"1{number}", f"Other {number}", {}) for number in range(5)]
    api.spreadsheets.append(Spreadsheet("1wanted", name, {name: [["Crop"], ["Rice"]]}))

    assert read(source, name, name) == [["Crop"], ["Rice"]]


def test_a_sheet_in_the_bin_is_no_sheet(api: GoogleApi, source: GoogleSheets) -> None:
    api.spreadsheets.insert(0, Spreadsheet("1old", "Lab", {"Samples": [["Old"]]}, trashed=True))

    assert read(source)[0] == ["Name", "Crop"]


def test_a_token_that_is_no_longer_good_is_replaced(api: GoogleApi, source: GoogleSheets) -> None:
    source.worksheets("Lab")
    api.tokens.clear()

    assert read(source)[0] == ["Name", "Crop"]
    assert api.asked("/token") == 2


@pytest.mark.parametrize("path", ["/token", "/drive", "/v4/spreadsheets/1lab"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, HANG_UP])
def test_what_fails_for_the_moment_is_repeated(api: GoogleApi, source: GoogleSheets, path: str, status: int) -> None:
    """Token requests are retried too."""
    api.fail(path, (status, ""), times=2)

    assert read(source)[0] == ["Name", "Crop"]
    assert [failure.times for failure in api.failures] == [0]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list to which the seconds of each sleep are added instead of sleeping."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def test_google_says_how_long_to_wait(api: GoogleApi, source: GoogleSheets, waits: list[float]) -> None:
    source.worksheets("Lab")
    api.fail("/v4", QUOTA, headers={"Retry-After": "17"})

    read(source)

    assert waits == [17]


def test_waits_grow(api: GoogleApi, source: GoogleSheets, waits: list[float]) -> None:
    """The waits are zero, then twice and four times the configured seconds."""
    api.fail("/v4", QUOTA, times=3)

    read(GoogleSheets(source.credentials_path, api.url, retries=3, backoff=0.1))

    assert waits == [0.2, 0.4]


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/v4", QUOTA, ["quota", "after 2 retries", "Quota exceeded for quota metric 'Read requests'", "later"]),
        ("/drive", USAGE_LIMIT, ["quota", "User Rate Limit Exceeded", "later"]),
        ("/v4", BROKEN, ["Google's API fails", "after 2 retries", "503: The service is currently", "later"]),
        ("/drive", (HANG_UP, ""), ["no usable answer", "without response", "HTTPS_PROXY", "later"]),
        ("/token", (HANG_UP, ""), ["no usable answer", "without response", "later"]),
        ("/token", (429, {}), ["no usable answer", "too many 429 error responses", "later"]),
        ("/token", (400, {"error": "temporarily_unavailable"}), ["no access token", "temporarily_unavailable"]),
        ("/drive", (200, "<html>Please log in</html>"), ["no usable answer", "later"]),
        ("/v4", (502, "<html>\n" + "Bad gateway " * 99), ["502: <html> Bad gateway", " ..."]),
    ],
    ids=["quota", "usage", "503", "hang-up", "token-hang-up", "token-quota", "token-later", "portal", "gateway"],
)
def test_what_fails_for_longer_may_work_later(
    api: GoogleApi, source: GoogleSheets, path: str, answer: RefusedError | tuple[int, object], says: list[str]
) -> None:
    api.fail(path, answer, times=99)

    refusal(lambda: read(source), "Sheet 'Lab' cannot be read at the moment", *says, kind=SourceUnavailableError)


def test_an_answer_that_is_cut_short(api: GoogleApi, source: GoogleSheets) -> None:
    """A truncated response is requested again, not taken as complete."""
    cut = {"Content-Length": "999", "Connection": "close"}
    source.worksheets("Lab")
    api.fail("/v4/spreadsheets/1lab", (200, '{"sheets": []}'), headers=cut)
    assert read(source)[0] == ["Name", "Crop"]

    api.fail("/v4/spreadsheets/1lab", (200, '{"sheets": []}'), headers=cut, times=2)

    refusal(lambda: read(source), "'Samples'", "no usable answer", "IncompleteRead", kind=SourceUnavailableError)


def test_nobody_answers(source: GoogleSheets) -> None:
    gone = GoogleSheets(source.credentials_path, "http://127.0.0.1:1", retries=1, backoff=0)

    refusal(lambda: gone.worksheets("Lab"), "no usable answer", "refused", kind=SourceUnavailableError)


def test_google_does_not_answer_in_time(source: GoogleSheets, api: GoogleApi) -> None:
    slow = GoogleSheets(source.credentials_path, api.url, retries=1, backoff=0, timeout=(1, 0.1))
    api.fail("/token", (200, ""), headers={"Content-Length": "999"}, times=9)

    refusal(lambda: slow.worksheets("Lab"), "no usable answer", kind=SourceUnavailableError)


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/v4", DISABLED, ["not enabled", EMAIL, "has not been used in project 123", "Google Drive API"]),
        ("/v4", DENIED, [f"may not be read by {EMAIL}", f"Share the sheet with {EMAIL} as Viewer"]),
        ("/v4", RefusedError(404, "Requested entity was not found.", "NOT_FOUND"), [f"may not be read by {EMAIL}"]),
        (
            "/v4",
            RefusedError(400, "Unable to parse range", "INVALID_ARGUMENT"),
            ["400: Unable to parse", "docs/google.md"],
        ),
        ("/v4", RefusedError(401, "Invalid credentials", "UNAUTHENTICATED"), ["401: Invalid cred", "docs/google.md"]),
        ("/drive", (404, "<html>Nothing here</html>"), ["404: <html>Nothing here</html>", "docs/google.md"]),
    ],
    ids=["disabled", "denied", "not-found", "bad-request", "unauthenticated", "elsewhere"],
)
def test_what_is_refused_is_not_repeated(
    api: GoogleApi, source: GoogleSheets, path: str, answer: RefusedError | tuple[int, object], says: list[str]
) -> None:
    """The message says what to do."""
    api.fail(path, answer, times=99)

    refusal(lambda: read(source), *says)

    # google-auth first tries two new tokens.
    assert api.asked(path) == (3 if "401: Invalid cred" in says else 1)


@pytest.mark.parametrize(
    "why",
    [
        "Invalid JWT Signature.",
        "Invalid grant: account not found",
        "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.",
    ],
)
def test_a_key_that_is_refused(api: GoogleApi, source: GoogleSheets, why: str) -> None:
    """The key or the account was deleted, or the clock is wrong: there is no retry."""
    api.revoked = why

    refusal(lambda: read(source), f"refuses the key of {EMAIL}", why, "clock", str(source.credentials_path))

    assert api.log == ["/token"]


def test_a_sheet_that_is_not_shared(api: GoogleApi, source: GoogleSheets) -> None:
    api.spreadsheets.append(Spreadsheet("1field", "Field", {}))

    refusal(
        lambda: source.worksheets("lab "),
        "Sheet 'lab ' is missing",
        f"no sheet of that title is shared with {EMAIL}",
        "Present: 'Field', 'Lab'. Did you mean 'Lab'?",
        f"Share it with {EMAIL} as Viewer",
    )


def test_no_sheet_is_shared(api: GoogleApi, source: GoogleSheets) -> None:
    api.spreadsheets.clear()

    refusal(lambda: source.worksheets("Lab"), "There is no shared sheet at all.")


def test_a_sheet_that_is_shared_later_is_found(api: GoogleApi, source: GoogleSheets) -> None:
    shared, api.spreadsheets = api.spreadsheets, []
    refusal(lambda: source.worksheets("Lab"), "is missing")
    api.spreadsheets = shared

    assert source.worksheets("Lab") == ["Samples"]


def test_two_sheets_of_one_title(api: GoogleApi, source: GoogleSheets) -> None:
    """Neither of them is read."""
    api.spreadsheets += [Spreadsheet("1field", "Field", {}), Spreadsheet("1copy", "Lab", {})]

    refusal(lambda: read(source), "2 sheets have the title 'Lab'", "/1copy, ", "/1lab.", "Rename")
    assert not api.asked("/v4")


@pytest.mark.parametrize("worksheet", ["samples", "Chart"])
def test_a_worksheet_that_is_missing(source: GoogleSheets, worksheet: str) -> None:
    """A chart does not count as a worksheet."""
    refusal(
        lambda: read(source, worksheet=worksheet),
        f"Worksheet '{worksheet}' of sheet 'Lab' is missing",
        "https://docs.google.com/spreadsheets/d/1lab",
        "Present: 'Samples'.",
    )


@pytest.mark.parametrize("rows", [[], [[], ["Rice"]], [["", None], ["Rice"]]], ids=["nothing", "later", "blank"])
def test_a_worksheet_without_a_header(api: GoogleApi, source: GoogleSheets, rows: list[list[object]]) -> None:
    api.spreadsheets = [Spreadsheet("1lab", "Lab", {"Samples": rows})]

    refusal(lambda: read(source), "Worksheet 'Samples' of sheet 'Lab'", "no header", "row 1")


def change(**changes: object) -> Callable[[dict[str, Any]], object]:
    """Return a function that changes a key file; None takes a field away."""
    return lambda info: {name: value for name, value in (info | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda _: {"installed": {"client_id": "x"}}, ["OAuth client"]),
        (lambda _: {"web": {"client_id": "x"}}, ["OAuth client"]),
        (change(type="authorized_user"), ["a person's login"]),
        (change(type="external_account"), ["of type 'external_account'"]),
        (change(type=None), ["something else"]),
        (lambda _: ["x"], ["something else"]),
        (change(client_email=None, token_uri=""), ["lacks client_email, token_uri"]),
        (change(private_key=None), ["lacks private_key"]),
        (change(private_key="x"), ["its private_key is no key"]),
        (lambda info: change(private_key=info["private_key"][:500])(info), ["its private_key is no key"]),
        (lambda info: change(private_key=[info["private_key"]])(info), ["its private_key is no key"]),
        (lambda info: json.dumps(info)[:-1].encode(), ["is not JSON"]),
        (lambda _: b"\x30\x82\xff", ["is not JSON"]),
        (lambda _: b"", ["is not JSON"]),
    ],
    ids=[
        "oauth-client",
        "oauth-web-client",
        "login",
        "external",
        "typeless",
        "list",
        "two-lacking",
        "keyless",
        "no-key",
        "cut-key",
        "list-key",
        "cut-json",
        "der",
        "empty",
    ],
)
def test_what_is_no_key_file(
    api: GoogleApi, source: GoogleSheets, content: Callable[[dict[str, Any]], object], says: list[str]
) -> None:
    """The message does not show the key."""
    changed = content(dict(api.credentials))
    source.credentials_path.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())

    message = refusal(
        lambda: source.worksheets("Lab"), *says, str(source.credentials_path), "CREDENTIALS_PATH", "docs/google.md"
    )

    assert api.credentials["private_key"][100:120] not in message
    assert not api.log


def test_a_key_file_with_a_byte_order_mark(api: GoogleApi, source: GoogleSheets) -> None:
    source.credentials_path.write_text(json.dumps(api.credentials), encoding="utf-8-sig")

    assert source.worksheets("Lab") == ["Samples"]


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    missing = GoogleSheets(tmp_path / "key.json")
    refusal(lambda: missing.worksheets("Lab"), f"{tmp_path / 'key.json'} (CREDENTIALS_PATH) is not there", "docs/")

    folder = GoogleSheets(tmp_path)
    refusal(lambda: folder.worksheets("Lab"), f"{tmp_path} (CREDENTIALS_PATH) cannot be read: Is a directory")


def test_no_token_goes_elsewhere(api: GoogleApi, source: GoogleSheets, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default google-auth would send it to another service of Google, to look up the account."""
    monkeypatch.setenv("HTTPS_PROXY", api.url)
    read(source)
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("google."):
            thread.join(10)

    assert not [line for line in api.log if "googleapis" in line]


def test_the_environment_names_it(api: GoogleApi, source: GoogleSheets) -> None:
    chosen = source_from_environment(
        {"ETL_SOURCE": "google", "CREDENTIALS_PATH": str(source.credentials_path), "ETL_GOOGLE_API_URL": api.url + "/"}
    )

    assert chosen.worksheets("Lab") == ["Samples"]
    assert "PRIVATE" not in repr(chosen)
