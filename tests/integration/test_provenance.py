"""Each row says where it is from and what it was; rows that no worksheet names are noted, and only they can go."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from ca_biositing.pipeline.etl.dataset import Dataset
from ca_biositing.pipeline.etl.rejection_limits import Limit
from ca_biositing.pipeline.etl.run import Accounting, TooManyRejectedError, run
from ca_biositing.pipeline.flows import datasets
from ca_biositing.pipeline.flows.experiment import EXPERIMENTS
from ca_biositing.pipeline.flows.field_sample import FIELD_SAMPLES
from ca_biositing.pipeline.flows.observation import OBSERVATIONS
from ca_biositing.pipeline.flows.primary_product import PRIMARY_PRODUCTS
from ca_biositing.pipeline.provenance import dataset_of, history, main, orphans
from ca_biositing.pipeline.sources import ExtractError
from ca_biositing.pipeline.sources.csv_folder import CsvFolder

Rows = Sequence[Sequence[str]]
ASH = "03.1-Ash"


class Sheets:
    """A csv folder, and the database that it is loaded into."""

    def __init__(self, directory: Path, engine: Engine) -> None:
        self.directory = directory
        self.engine = engine

    def write(self, dataset: Dataset, worksheets: Mapping[str, Rows]) -> None:
        """Replace the dataset's sheet."""
        folder = self.directory / dataset.sheet
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, rows in worksheets.items():
            with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([[*dataset.columns], *rows])

    def load(self, dataset: Dataset, rows: Rows, limit: Limit | None = None) -> Accounting:
        """Write rows as the dataset's only worksheet, and load it."""
        self.write(dataset, {dataset.worksheets if dataset.model is not OBSERVATIONS.model else ASH: rows})
        return run(dataset, CsvFolder(self.directory), self.engine, limit=limit)

    def rows(self, statement: str, **parameters: object) -> list[tuple[object, ...]]:
        """Return the rows of a query."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(statement), parameters)]

    def execute(self, statement: str, **parameters: object) -> int:
        """Change rows by hand; return their number."""
        with self.engine.begin() as connection:
            return connection.execute(text(statement), parameters).rowcount

    def orphans(self, dataset: Dataset) -> list[Sequence[str]]:
        """Return the keys of the rows that no worksheet names."""
        with self.engine.connect() as connection:
            return [each.key for each in orphans(connection, dataset)]

    def history(self, dataset: Dataset, row_id: int = 1) -> list[str]:
        """Return what made the changes of a row."""
        with self.engine.connect() as connection:
            return [change.who for change in history(connection, dataset, row_id)]


@pytest.fixture
def sheets(migrated_database: Engine, tmp_path: Path) -> Sheets:
    """Return sheets, and a database with two samples and an experiment."""
    made = Sheets(tmp_path, migrated_database)
    made.load(FIELD_SAMPLES, [sample("S1"), sample("S2")])
    made.load(EXPERIMENTS, [["E1", "", "", ""]])
    return made


def sample(name: str, amount: str = "") -> list[str]:
    """Return the cells of a sample."""
    return [name, "Hulls", "", "P", "", "", amount]


def observation(
    value: str, sample: str = "S1", parameter: str = "Ash", unit: str = "%", replicate: str = "1"
) -> list[str]:
    """Return the cells of an observation."""
    return [sample, "E1", parameter, unit, value, replicate]


def test_a_row_says_which_runs_wrote_it_and_from_where(sheets: Sheets) -> None:
    """The row number is that of the run that wrote the values: a row that only moves is not written again."""
    first = sheets.load(OBSERVATIONS, [observation("1"), observation("2", "S2")])
    second = sheets.load(OBSERVATIONS, [observation("9", replicate="2"), observation("1"), observation("3", "S2")])

    assert (second.inserted, second.updated, second.unchanged) == (1, 1, 1)
    origins = sheets.rows(
        "SELECT value, row_number, inserted.etl_run_id, changed.etl_run_id, changed.sheet, changed.worksheet"
        " FROM observation JOIN etl_worksheet AS inserted ON inserted.id = inserted_from"
        " JOIN etl_worksheet AS changed ON changed.id = changed_from ORDER BY value"
    )
    assert origins == [
        (1, 2, first.run_id, first.run_id, OBSERVATIONS.sheet, ASH),
        (3, 4, first.run_id, second.run_id, OBSERVATIONS.sheet, ASH),
        (9, 2, second.run_id, second.run_id, OBSERVATIONS.sheet, ASH),
    ]


def test_what_a_row_was_is_kept_through_loads_changes_by_hand_and_its_removal(
    sheets: Sheets, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets.load(FIELD_SAMPLES, [sample("S1", "12.50"), sample("S2")])
    user = sheets.rows("SELECT session_user")[0][0]
    assert sheets.execute("UPDATE field_sample SET county = 'Kern', residue = residue WHERE name = 'S1'") == 1
    # Nothing differs.
    assert sheets.execute("UPDATE field_sample SET county = 'Kern' WHERE name = 'S1'") == 0
    sheets.load(FIELD_SAMPLES, [sample("s1", "12.5"), sample("S2")])
    assert sheets.execute("DELETE FROM field_sample WHERE name_key = 's1'") == 1

    assert main(["history", "field_sample", "S1"]) == 0

    shown = capsys.readouterr().out.splitlines()
    times = re.compile(r"^  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC  ")
    where = f"of field_sample, from '{FIELD_SAMPLES.sheet}', worksheet {FIELD_SAMPLES.worksheets}, row 2"
    assert [times.sub("", line) for line in shown] == [
        "field_sample 1",
        f"inserted by run 1 {where}",
        "    name: S1",
        "    residue: Hulls",
        "    primary_product_id: empty",
        "    provider_code: P",
        "    county: empty",
        "    collection_date: empty",
        "    amount_kg: empty",
        f"changed by run 3 {where}",
        "    amount_kg: empty -> 12.50",
        f"changed by hand, with the login {user}",
        "    county: empty -> Kern",
        f"changed by run 4 {where}",
        "    name: S1 -> s1",
        "    county: Kern -> empty",
        "    amount_kg: 12.50 -> 12.5",
        f"removed by hand, with the login {user}",
    ]


def test_a_change_by_hand_is_no_load_s(sheets: Sheets) -> None:
    sheets.execute("UPDATE field_sample SET county = 'Kern' WHERE name = 'S1'")

    assert sheets.rows(
        "SELECT inserted_from IS NULL, changed_from, row_number, updated_at > created_at"
        " FROM field_sample ORDER BY name"
    ) == [(False, None, None, True), (False, 1, 3, False)]


def test_a_retry_of_a_completed_run_is_no_change_by_hand(sheets: Sheets) -> None:
    """The retry has the run's id, and other values than the first attempt."""
    flow_run_id = sheets.rows("SELECT gen_random_uuid()")[0][0]
    for amount in ("1", "2"):
        sheets.write(FIELD_SAMPLES, {FIELD_SAMPLES.worksheets: [sample("S1", amount), sample("S2")]})
        run(FIELD_SAMPLES, CsvFolder(sheets.directory), sheets.engine, flow_run_id=flow_run_id)  # type: ignore[arg-type]

    assert [who.split(" of ")[0] for who in sheets.history(FIELD_SAMPLES)] == [
        "inserted by run 1",
        "changed by run 3",
        "changed by run 3",
    ]


def test_a_row_whose_key_is_nowhere_is_orphaned_until_it_is_named_again(sheets: Sheets) -> None:
    first = sheets.load(
        OBSERVATIONS, [observation("1"), observation("2", unit="", replicate=""), observation("3", "S2")]
    )
    assert first.orphaned == 0

    # Another spelling of the same key, a key that changed, and a row that is gone.
    second = sheets.load(OBSERVATIONS, [observation("1", " s1", "ASH"), observation("2", unit="mg", replicate="")])

    assert (second.inserted, second.orphaned) == (1, 2)
    assert sheets.orphans(OBSERVATIONS) == [("S1", "E1", "Ash", "", ""), ("S2", "E1", "Ash", "%", "1")]
    assert str(second).endswith("; 2 rows of the table are orphaned")
    third = sheets.load(OBSERVATIONS, [observation("1"), observation("2", unit="", replicate="")])
    assert third.orphaned == 2
    assert sheets.rows("SELECT row_id, etl_run_id FROM orphaned_row ORDER BY row_id") == [
        (3, second.run_id),
        (4, third.run_id),
    ]
    assert sheets.rows("SELECT id, orphaned FROM etl_run WHERE flow = 'observation' ORDER BY id") == [
        (first.run_id, 0),
        (second.run_id, 2),
        (third.run_id, 2),
    ]
    assert sheets.rows("SELECT count(*) FROM observation") == [(4,)]


def test_a_rejected_row_names_its_key_while_another_cell_is_wrong(sheets: Sheets) -> None:
    """Also rows that contradict each other do, and a row as a whole that is wrong does not."""
    names = ("Ash", "Carbon", "Nitrogen", "Sulfur")
    sheets.load(OBSERVATIONS, [observation("1", parameter=name) for name in names])

    again = sheets.load(
        OBSERVATIONS,
        [
            observation("n.d.", parameter="ash"),
            observation("2", parameter="Carbon"),
            observation("3", parameter="carbon"),
            [*observation("1", parameter="Nitrogen"), "moved"],
            observation("1", "S3", parameter="Sulfur"),
        ],
    )

    assert (again.rejected, again.orphaned) == (5, 2)
    assert {key[2] for key in sheets.orphans(OBSERVATIONS)} == {"Nitrogen", "Sulfur"}


def test_every_worksheet_of_a_pattern_counts(sheets: Sheets) -> None:
    both = {ASH: [observation("1")], "03.2-Carbon": [observation("2", parameter="Carbon")]}
    loads = []
    for worksheets in (both, {ASH: both[ASH]}, both):
        sheets.write(OBSERVATIONS, worksheets)
        loads.append(run(OBSERVATIONS, CsvFolder(sheets.directory), sheets.engine))

    assert [(each.inserted, each.orphaned) for each in loads] == [(2, 0), (0, 1), (0, 0)]


def test_a_load_that_fails_notes_nothing(sheets: Sheets) -> None:
    sheets.load(OBSERVATIONS, [observation("1"), observation("2", "S2")])

    with pytest.raises(TooManyRejectedError):
        sheets.load(OBSERVATIONS, [observation("x")], Limit(0, is_percentage=False))  # type: ignore[arg-type]
    sheets.write(OBSERVATIONS, {"03.3": [observation("1")]})
    with pytest.raises(ExtractError):
        run(OBSERVATIONS, CsvFolder(sheets.directory), sheets.engine)

    assert sheets.rows("TABLE unnamed_row") == []
    assert sheets.rows("TABLE row_history") == []


def test_two_flows_of_one_table_must_both_miss_a_row(sheets: Sheets) -> None:
    other = replace(PRIMARY_PRODUCTS, name="other", worksheets="Other")
    assert sheets.load(PRIMARY_PRODUCTS, [["Almond"], ["Rice"]]).orphaned == 0
    assert sheets.load(other, [["Rice"], ["Wheat"]]).orphaned == 0

    loads = [
        sheets.load(PRIMARY_PRODUCTS, [["Rice"]]),
        sheets.load(other, [["Rice"]]),
        sheets.load(other, [["Almond"], ["Rice"]]),
        sheets.load(PRIMARY_PRODUCTS, [["Wheat"]]),
    ]

    assert [each.orphaned for each in loads] == [1, 2, 1, 0]


def test_rows_that_no_load_wrote_are_orphaned_too(sheets: Sheets) -> None:
    sheets.execute("INSERT INTO primary_product (name, name_key) VALUES ('Almond', 'almond'), ('Medlar', 'medlar')")

    loaded = sheets.load(PRIMARY_PRODUCTS, [["Almond"]])

    assert (loaded.inserted, loaded.unchanged, loaded.orphaned) == (0, 1, 1)
    assert sheets.orphans(PRIMARY_PRODUCTS) == [("Medlar",)]
    assert sheets.history(PRIMARY_PRODUCTS, 2) == ["written by hand, or before loads noted where rows are from"]


def test_only_orphaned_rows_are_removed_and_they_can_be_restored(
    sheets: Sheets, capsys: pytest.CaptureFixture[str]
) -> None:
    sheets.load(OBSERVATIONS, [observation("12.50"), observation("2", "S2"), observation("3", replicate="2")])
    sheets.load(OBSERVATIONS, [observation("12.50")])
    rows = "SELECT * FROM observation ORDER BY id"
    before = sheets.rows(rows)

    assert main(["orphans"]) == 0
    shown = capsys.readouterr().out
    assert "observation: 2 rows that no worksheet names" in shown
    assert re.search(rf"(?m)^  2   S2 +E1 +Ash +% +1 +\S+ \S+ +{ASH}, row 3$", shown)

    assert main(["remove", "observation", "1,2,77", "--yes"]) == 1
    assert capsys.readouterr().err.startswith("1, 77: no such row of observation, or a worksheet names it. Nothing was")
    assert main(["remove", "observation", "2"]) == 0
    assert sheets.rows(rows) == before

    assert main(["remove", "observation", "2", "--yes"]) == 0
    assert capsys.readouterr().out.splitlines()[-3] == "1 rows of observation: 2"
    assert sheets.rows(rows) == [before[0], before[2]]
    assert main(["remove", "observation", "all", "--yes"]) == 0
    assert sheets.rows(rows) == before[:1]
    assert sheets.rows("TABLE unnamed_row") == []
    capsys.readouterr()
    assert main(["orphans", "observation"]) == 0
    assert capsys.readouterr().out == "Worksheets name every row of observation, or its flow has not run yet.\n"

    page = (Path(__file__).parents[2] / "docs/operate.md").read_text(encoding="utf-8")
    (statement,) = re.findall(r"```sql\n(INSERT INTO observation .*?)```", page, re.DOTALL)
    for row in (2, 3):
        assert sheets.execute(statement.replace("17", str(row))) == 1
    assert sheets.rows(rows) == before
    assert sheets.history(OBSERVATIONS, 2)[-1] == "inserted again by hand"


def test_a_row_that_others_refer_to_stays(sheets: Sheets, capsys: pytest.CaptureFixture[str]) -> None:
    sheets.load(OBSERVATIONS, [observation("1"), observation("1", "S2")])
    assert sheets.load(FIELD_SAMPLES, [sample("S1")]).orphaned == 1

    assert main(["remove", "field_sample", "all", "--yes"]) == 1

    assert 'is still referenced from table "observation". Remove or correct those first' in capsys.readouterr().err
    assert sheets.rows("SELECT count(*) FROM field_sample") == [(2,)]
    assert sheets.orphans(FIELD_SAMPLES) == [("S2",)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["history", "observation", "S1, E1, Ash, %, 1"], "observation 1\n"),
        (["history", "observation", '"s1",e1'], "observation 3\n"),
        (["history", "observation", "S1, E1, ph, , 1"], "observation 3\n"),
        (["history", "observation", "S7"], "Sample_name is not in field_sample"),
        (["history", "observation", "S1,E1,Ash,%,one"], "Replicate is not a whole number from 1 to 32767"),
        (["history", "observation", "S1,E1,Ash,%,1,2"], "is Sample_name, Exper_id, Parameter, Unit, Replicate. Give"),
        (["history", "observation", "S2, E1, pH"], "observation has no row with the key S2, E1, pH"),
        (["history", "observatoin", "S1"], "No flow loads a table 'observatoin'."),
        (["history", "field_sample", ""], "Sample_name is empty"),
        (["orphans", "etl_run"], "No flow loads a table 'etl_run'."),
    ],
)
def test_a_key_is_given_as_the_worksheet_has_it(
    sheets: Sheets, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    sheets.load(OBSERVATIONS, [observation("1"), observation("1", "S2"), observation("7", parameter="pH", unit="")])

    code = main(arguments)

    shown = capsys.readouterr()
    assert says in shown.out + shown.err
    assert code == (0 if shown.out else 1)
    assert bool(shown.out) != bool(shown.err)


# A table of the session's own, in the place of PostgreSQL's list of owners: temporary tables come first, unless a
# function says otherwise.
FORGED_OWNER = (
    "CREATE TEMPORARY TABLE pg_class (oid oid, relowner oid);"
    " INSERT INTO pg_temp.pg_class SELECT 'public.row_history'::regclass, oid FROM pg_roles"
    " WHERE rolname = current_user;"
)
WRITES = (
    "INSERT INTO row_history (table_name, row_id, change, before) VALUES ('observation', 1, 'update', '{}')",
    "UPDATE row_history SET changed_by = 'somebody'",
    "DELETE FROM row_history",
)


@contextmanager
def as_writer(engine: Engine, name: str) -> Iterator[Connection]:
    """Connect with the privileges that roles/database gives to flows for other tables than the history."""
    with engine.connect() as connection:
        connection.execute(text(f"CREATE ROLE {name}"))
        for privileges in ("SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "SELECT, USAGE ON ALL SEQUENCES"):
            connection.execute(text(f"GRANT {privileges} IN SCHEMA public TO {name}"))
        connection.execute(text(f"GRANT TEMPORARY ON DATABASE {engine.url.database} TO {name}"))
        connection.execute(text(f"SET ROLE {name}"))
        yield connection
        # Also the role is rolled back.


@pytest.mark.parametrize(
    "statement",
    [
        *WRITES,
        "TRUNCATE row_history",
        *(f"{FORGED_OWNER} {write}" for write in WRITES),
        "ALTER TABLE row_history DISABLE TRIGGER ALL",
        "ALTER TABLE field_sample DISABLE TRIGGER ALL",
        "CREATE TEMPORARY TABLE mine (id int);"
        " CREATE TRIGGER forge AFTER DELETE ON mine REFERENCING OLD TABLE AS old_row EXECUTE FUNCTION record_history()",
    ],
)
def test_flows_cannot_rewrite_the_history(sheets: Sheets, statement: str) -> None:
    """Their changes are kept all the same, wherever else a table of the history's name is."""
    with as_writer(sheets.engine, "writer") as connection:
        connection.execute(text("CREATE TEMPORARY TABLE row_history (LIKE public.row_history)"))
        connection.execute(text("CREATE TEMPORARY TABLE field_sample_2 (LIKE public.row_history)"))
        assert connection.execute(text("UPDATE field_sample SET county = 'Kern'")).rowcount == 2
        kept = connection.execute(text("SELECT before ->> 'name' FROM public.row_history ORDER BY 1")).scalars().all()
        assert kept == ["S1", "S2"]
        connection.execute(text("DROP TABLE pg_temp.row_history"))
        with pytest.raises(DBAPIError, match=r"InsufficientPrivilege"):
            connection.execute(text(statement))


def test_every_table_keeps_its_history(migrated_database: Engine) -> None:
    """If this fails, call keep_history in the migration that creates the table."""
    query = "SELECT tgname FROM pg_trigger WHERE tgrelid = CAST(:table AS regclass) AND NOT tgisinternal"
    with migrated_database.connect() as connection:
        for dataset in datasets():
            assert dataset_of(dataset.table.name).table is dataset.table
            triggers = connection.execute(text(query), {"table": dataset.table.name}).scalars()
            assert {*triggers} == {
                "change_is_none",
                "changed_by_hand",
                "history_of_updates",
                "history_of_deletions",
            }, dataset.name


def test_no_function_finds_names_in_the_schema_of_temporary_tables(migrated_database: Engine) -> None:
    """If this fails, give the function of your migration SET search_path = pg_catalog, pg_temp."""
    query = "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    with migrated_database.connect() as connection:
        functions = connection.execute(text(query)).all()
    assert {name for name, _ in functions} == {"changed_by_hand", "keep_history", "record_history", "refuse_change"}
    assert [name for name, settings in functions if settings != ["search_path=pg_catalog, pg_temp"]] == []


def test_tables_of_another_schema_keep_their_history(migrated_database: Engine) -> None:
    with migrated_database.begin() as connection:
        connection.execute(text('ALTER SCHEMA public RENAME TO "the Application"'))
        connection.execute(text('SET search_path = "the Application"'))
        connection.execute(
            text("CREATE TABLE later (id int, updated_at timestamptz, changed_from int, row_number int)")
        )
        connection.execute(text("SELECT keep_history('later')"))
        connection.execute(text("INSERT INTO later VALUES (1, NULL, 7, 8)"))
        connection.execute(text("UPDATE later SET id = 2"))
        changed = connection.execute(text("SELECT id, changed_from, updated_at IS NULL FROM later")).one()
        kept = connection.execute(text("SELECT table_name, row_id, change FROM row_history")).all()
    assert (tuple(changed), [tuple(row) for row in kept]) == ((2, None, False), [("later", 1, "update")])
