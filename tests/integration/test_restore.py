"""Scripts that restore or converge a database: who owns it, with its functions and settings, gets no more rights."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import jinja2
import pytest
from docker.models.containers import Container

from roles.backup.files.recovery import cluster
from tests import limits

ROLES = Path(__file__).parents[2] / "roles"
CONNECTIONS = [{"database": "it", "roles": ["it_owner"], "local": ["it_owner"]}]
ROLES_SQL = """
CREATE ROLE it_owner CREATEROLE; CREATE ROLE it_reader ADMIN it_owner; CREATE ROLE it_login LOGIN IN ROLE it_owner;
ALTER ROLE it_login SET role = it_owner;
"""
# What the owner does to become superuser, in each way that runs in a session of another.
FUNCTIONS = """
CREATE FUNCTION rise() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('role', 'none', false);
    PERFORM set_config('session_authorization', 'postgres', false);
    EXECUTE 'ALTER ROLE it_owner SUPERUSER';
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN true;
END $$;
CREATE TABLE checked (id integer CHECK (rise()));
-- The constraint is met without its function while the dump is made.
ALTER TABLE checked DISABLE TRIGGER ALL;
CREATE TABLE plain (id integer PRIMARY KEY, note text);
INSERT INTO plain VALUES (1, 'kept');
CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT public.rise()::text';
CREATE FUNCTION public.string_agg(name, text) RETURNS text LANGUAGE sql AS 'SELECT public.rise()::text';
CREATE VIEW alembic_version AS SELECT 'x'::text AS version_num WHERE rise();
"""
# What a filter by lines lets through of the first leaves its string open; the second continues outside of it.
SETTINGS = r"""
ALTER DATABASE it SET application_name = E'x\n;';
ALTER DATABASE it SET search_path = E'; ALTER ROLE it_owner SUPERUSER; --', "$user", public, E'odd, "name';
ALTER ROLE it_reader IN DATABASE it SET application_name = E'$do$; \\! touch /tmp/ran\n\\gexec';
ALTER DATABASE it SET work_mem = '5MB';
ALTER DATABASE it CONNECTION LIMIT 7;
REVOKE ALL ON DATABASE it FROM PUBLIC;
GRANT CONNECT ON DATABASE it TO it_reader WITH GRANT OPTION;
"""
STATE = """
SELECT datconnlimit, datacl,
       (SELECT array_agg(entry ORDER BY entry)
          FROM pg_db_role_setting, unnest(setconfig) AS entry WHERE setdatabase = pg_database.oid)
  FROM pg_database WHERE datname = 'it'
"""
Sql = Callable[..., str]


@pytest.fixture
def container() -> Iterator[Container]:
    """Start a PostgreSQL with the platform's client authentication."""
    container = docker.from_env().containers.run("biocirv-postgresql:test", detach=True, remove=True)
    try:
        environment = jinja2.Environment(trim_blocks=True)  # noqa: S701 - no HTML
        environment.filters["regex_replace"] = lambda value, pattern, to: re.sub(pattern, to, value)
        for name in ("pg_hba.conf", "pg_ident.conf"):
            template = environment.from_string((ROLES / f"postgresql/templates/{name}.j2").read_text(encoding="utf-8"))
            text = template.render(
                ansible_managed="",
                postgresql_connections=CONNECTIONS,
                postgresql_clients=["127.0.0.1/32"],
                postgresql_local_logins=["it_login"],
            )
            execute(container, f"cat > $(ls -d /etc/postgresql/*/main)/{name} <<'END'\n{text}\nEND\n")
        program = (ROLES / "base/files/dump-database").read_text(encoding="utf-8")
        execute(container, f"mkdir -p /opt/biocirv/bin && cat > /opt/biocirv/bin/dump-database <<'END'\n{program}END\n")
        execute(container, "chmod 755 /opt/biocirv/bin/dump-database && install -d -o postgres /dumps")
        limits.wait_until(lambda: container.exec_run("pg_isready").exit_code == 0, "PostgreSQL starts")
        execute(container, "kill -HUP 1")
        for statements in (ROLES_SQL, "CREATE DATABASE it OWNER it_owner"):
            execute(container, 'exec psql -Xqc "$1"', statements, user="postgres")
        yield container
    finally:
        container.stop()


def execute(container: Container, script: str, *arguments: str, user: str = "root") -> str:
    """Run a shell script; return its output."""
    command = ["docker", "exec", "--user", user, str(container.id), "sh", "-c", script, "script", *arguments]
    done: subprocess.CompletedProcess[str] = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def sql(container: Container) -> Sql:
    """Return a function that runs statements, as the owner's login or as the superuser."""

    def run(statements: str, database: str = "it", login: str = "it_login") -> str:
        program = 'exec psql -AtXq -v ON_ERROR_STOP=1 -U "$1" -d "$2" -c "$3"'
        return execute(container, program, login, database, statements, user="postgres")

    return run


def restore(container: Container, dump: str) -> None:
    """Do what roles/backup/tasks/replace.yml does."""
    beside, replace = (
        (ROLES / f"backup/files/{name}").read_text(encoding="utf-8")
        for name in ("restore-beside.sh", "replace-database.sh")
    )
    execute(container, beside, dump, "5432", "it", "it_owner", "it_login")
    execute(container, replace, "/dumps", "5", "5432", "it", "it_login", user="postgres")


def superusers(sql: Sql) -> str:
    """Return the names of superusers."""
    return sql("SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper", "postgres", "postgres")


def test_the_owner_of_a_dump_stays_the_owner(container: Container, sql: Sql) -> None:
    """Constraints, functions with names of PostgreSQL's, views and settings run as the owner, or not at all."""
    sql(FUNCTIONS)
    sql(SETTINGS)
    sql("INSERT INTO checked VALUES (1)")
    assert superusers(sql) == "postgres"
    execute(container, "cd / && pg_dump -Fc -f /tmp/it.dump it && chmod 600 /tmp/it.dump", user="postgres")
    before = sql(STATE, "postgres", "postgres")
    assert "work_mem=5MB" in before
    assert "SUPERUSER" in before

    restore(container, "/tmp/it.dump")  # noqa: S108 - in the container

    assert superusers(sql) == "postgres"
    assert sql(STATE, "postgres", "postgres") == before
    assert execute(container, "ls /tmp/ran 2>/dev/null || echo none") == "none"
    assert sql("SELECT note FROM plain") == "kept"
    owners = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert sql(owners, "it", "postgres") == "it_owner"


def test_extensions_that_only_a_superuser_creates_come_back(container: Container, sql: Sql) -> None:
    """With the rows that a dump has of them, and the owner has no lasting permission on these tables."""
    extension = """
cd $(pg_config --sharedir)/extension
echo "default_version = '1'" > it_words.control
cat > it_words--1.sql <<'END'
CREATE TABLE it_word (word text);
GRANT SELECT ON it_word TO PUBLIC;
SELECT pg_catalog.pg_extension_config_dump('it_word', 'WHERE true');
END
"""
    execute(container, extension.replace("$(pg_config --sharedir)", "$(ls -d /usr/share/postgresql/*)"))
    sql("CREATE EXTENSION it_words; INSERT INTO it_word VALUES ('one')", "it", "postgres")
    sql("CREATE EXTENSION pg_trgm; CREATE TABLE plain (id integer)")
    execute(container, "cd / && pg_dump -Fc -f /tmp/it.dump it", user="postgres")

    restore(container, "/tmp/it.dump")  # noqa: S108 - in the container

    names = "SELECT extname, pg_get_userbyid(extowner) FROM pg_extension ORDER BY extname"
    assert sql(names).splitlines() == ["it_words|postgres", "pg_trgm|it_owner", "plpgsql|postgres"]
    assert sql("SELECT word FROM it_word") == "one"
    assert sql("SELECT has_table_privilege('it_owner', 'it_word', 'INSERT')") == "f"


def test_a_table_of_a_superuser_stops_no_restoration(container: Container, sql: Sql) -> None:
    """It is in the dump of what is replaced. The owner cannot make that dump, and is told what to do."""
    sql("CREATE TABLE plain (id integer)")
    execute(container, "cd / && pg_dump -Fc -f /tmp/it.dump it", user="postgres")
    sql("CREATE TABLE by_hand (id integer); INSERT INTO by_hand VALUES (4711)", "it", "postgres")

    as_owner = (
        "cd / && PGDATABASE=it PGUSER=it_login /opt/biocirv/bin/dump-database /dumps 5 2>&1 && exit 1; ls -A /dumps"
    )
    said = execute(container, as_owner, user="postgres")
    assert "its owner may not read by_hand. As superuser, run for each: ALTER TABLE <name> OWNER TO" in said

    restore(container, "/tmp/it.dump")  # noqa: S108 - in the container
    assert sql("SELECT to_regclass('by_hand')") == ""
    kept = execute(
        container, "cd / && pg_restore --data-only --table=by_hand --file=- /dumps/it-*.dump", user="postgres"
    )
    assert "4711" in kept


@pytest.mark.parametrize("login", ["postgres", "it_owner", "it_login"])
def test_only_the_account_postgres_uses_these_logins(container: Container, login: str) -> None:
    said = execute(container, 'psql -U "$1" -d it -c "SELECT 1" 2>&1 || true', login, user="nobody")
    assert "Peer authentication failed" in said


def test_a_dump_waits_for_a_lock_and_then_names_the_table(container: Container, sql: Sql) -> None:
    """Whoever writes a table can lock it for as long as a session lasts."""
    sql("CREATE TABLE plain (id integer)")
    script = (ROLES / "base/files/dump-database").read_text(encoding="utf-8").replace("=10min", "=1s")
    lock = "(echo 'BEGIN; LOCK plain;'; exec sleep 600) | psql -XqU it_login it & holder=$!\n"
    held = (
        "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock' AND relation = 'plain'::regclass"
    )
    wait = f"""until [ "$(psql -AtXc "{held}" it)" = 1 ]; do sleep 0.1; done\n"""
    dump = 'sh -c "$1" dump-database /dumps 5 2>&1 && exit 1\nkill $holder'

    said = execute(container, f"cd / && export PGDATABASE=it\n{lock}{wait}{dump}", script, user="postgres")

    assert "LOCK TABLE public.plain IN ACCESS SHARE MODE" in said
    assert execute(container, "ls -A /dumps") == ""


@pytest.fixture
def converge(container: Container, tmp_path: Path) -> Callable[[], list[str]]:
    """Return a function that applies the script of roles/database, and returns the differences that it says."""
    database = {"name": "it", "owner": "it_owner", "writers": ["it_writer"], "readers": ["it_reader"]}
    logins = {"it_login": "it_owner", "it_flows": "it_writer", "it_monitor": "pg_monitor"}
    variables = {
        "ansible_managed": "",
        "database_databases": [{**database, "monitors": ["pg_monitor"], "extensions": ["pg_trgm"]}],
        "database_logins": [
            {"name": name, "password": "p" * 16, "role": role, "connections": 5} for name, role in logins.items()
        ],
        "database_scram_key": "k" * 32,
        "__database_audit_of_others": "none",
    }
    template, script = ROLES / "database/templates/access.sql.j2", tmp_path / "access.sql"
    command = ["ansible", "localhost", "--module-name", "template", "--args", f"src={template} dest={script}"]
    environment = {**os.environ, "ANSIBLE_FILTER_PLUGINS": str(ROLES / "database/filter_plugins")}
    command += ["--extra-vars", f"@{ROLES}/database/defaults/main.yml", "--extra-vars", json.dumps(variables)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    execute(container, f"cat > /tmp/access.sql <<'END'\n{script.read_text(encoding='utf-8')}\nEND\n")
    apply = "psql -X -v apply=on -v retire=off -f /tmp/access.sql postgres"
    return lambda: execute(container, apply, user="postgres").splitlines()


@pytest.mark.thorough
def test_a_converge_runs_no_function_of_the_owner(sql: Sql, converge: Callable[[], list[str]]) -> None:
    """In the default search path, those with a name of PostgreSQL's and more fitting arguments take precedence."""
    sql(FUNCTIONS)

    assert converge()
    said = converge()

    assert superusers(sql) == "postgres"
    assert said == []
    assert "pg_trgm" in sql("SELECT extname FROM pg_extension")
    assert sql("SELECT has_table_privilege('it_reader', 'plain', 'SELECT')") == "t"


def test_flows_only_read_what_only_triggers_write(sql: Sql, converge: Callable[[], list[str]]) -> None:
    """A converge knows such tables by their trigger; the next one finds nothing to do."""
    converge()
    sql("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TABLE history (id int); CREATE TABLE alembic_version (id int); CREATE TABLE plain (id int);
        CREATE TRIGGER refuse_change BEFORE INSERT ON history EXECUTE FUNCTION refuse()
    """)
    tables = ["history", "alembic_version", "plain"]
    writes = ", ".join(f"has_table_privilege('it_writer', '{table}', 'INSERT, UPDATE, DELETE')" for table in tables)
    reads = ", ".join(f"has_table_privilege('it_writer', '{table}', 'SELECT')" for table in tables)
    assert sql(f"SELECT {writes}") == "t|t|t"

    changed = [f"table {table} of it for it_writer" for table in ("alembic_version", "history")]
    assert converge() == changed

    assert (sql(f"SELECT {writes}"), sql(f"SELECT {reads}")) == ("f|f|t", "t|t|t")
    assert converge() == []


def test_a_converge_removes_settings_that_logins_made_of_themselves(
    sql: Sql, converge: Callable[[], list[str]]
) -> None:
    """PostgreSQL cannot forbid them. Those of the platform come back."""
    converge()
    settings = (
        "SELECT rolname, entry FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole,"
        " unnest(setconfig) AS entry ORDER BY 1, 2"
    )
    ours = [
        "it_flows|idle_in_transaction_session_timeout=1h",
        "it_flows|lock_timeout=1h",
        "it_flows|pgaudit.log=none",
        "it_flows|temp_file_limit=20GB",
        "it_login|role=it_owner",
        "it_monitor|pgaudit.log=none",
    ]
    assert sql(settings).splitlines() == ours
    for statement in (
        "ALTER ROLE it_flows SET search_path = pg_temp",
        "ALTER ROLE it_flows SET lock_timeout = 1",
        "ALTER ROLE it_flows SET role = none",
        "ALTER ROLE it_flows SET timezone = 'Asia/Tokyo'",
        "ALTER ROLE it_flows IN DATABASE it SET default_transaction_read_only = on",
        "ALTER ROLE it_flows IN DATABASE it SET lock_timeout = '1h'",
    ):
        sql(f"SET SESSION AUTHORIZATION it_flows; {statement}", login="postgres")

    assert converge() == [
        "setting lock_timeout of it_flows",
        "setting of it_flows is not the platform's: TimeZone",
        "setting of it_flows is not the platform's: default_transaction_read_only in it",
        "setting of it_flows is not the platform's: lock_timeout in it",
        "setting of it_flows is not the platform's: role",
        "setting of it_flows is not the platform's: search_path",
    ]

    assert sql(settings).splitlines() == ours
    assert converge() == []


def test_a_monitor_makes_no_temporary_table(sql: Sql, converge: Callable[[], list[str]]) -> None:
    """Nor does that of a platform whose converges gave the privilege."""
    converge()
    makes = ", ".join(f"has_database_privilege('{login}', 'it', 'TEMPORARY')" for login in ("it_monitor", "it_flows"))
    assert sql(f"SELECT {makes}") == "f|t"
    sql("GRANT TEMPORARY ON DATABASE it TO pg_monitor", login="postgres")
    assert converge() == ["pg_monitor may connect to it"]
    assert sql(f"SELECT {makes}") == "f|t"
    assert sql("SELECT has_database_privilege('it_monitor', 'it', 'CONNECT')") == "t"
    assert converge() == []


# As in a drill and in a restoration, of the living database and of the copy.
ASKED = {
    "revision": (cluster.REVISION, ""),
    "numbers of rows": (cluster.TABLES, cluster.COUNT),
    "digests": (cluster.TABLES, cluster.DIGEST),
    "rows written": (cluster.WRITES, ""),
}
# Ways into a session that asks: a function with more fitting arguments, a cast, a schema before PostgreSQL's.
WAYS = """
CREATE FUNCTION public.format(text, text, regclass) RETURNS text LANGUAGE sql AS
    $$SELECT 'SELECT 1 AS count WHERE ' || public.rise()$$;
CREATE FUNCTION read(plain) RETURNS text LANGUAGE sql AS 'SELECT public.rise()::text';
CREATE CAST (plain AS text) WITH FUNCTION read(plain);
CREATE SCHEMA ahead;
CREATE VIEW ahead.pg_stat_user_tables AS
    SELECT 'plain'::regclass AS relid, 1::bigint AS n_tup_ins, 1::bigint AS n_tup_del WHERE public.rise();
ALTER DATABASE it SET search_path = ahead, pg_catalog, public;
"""


def ask(container: Container, query: str, what: str, end: str = "exit $?") -> str:
    """Ask the database as the package recovery does; return the answer."""
    program = f'printf %s "$3" | PGOPTIONS="$1" psql -AtXq -v ON_ERROR_STOP=1 -v what="$2" -d it -f -; {end}'
    return execute(container, program, cluster.SESSION, what, cluster.NO_VIEWS + query, user="postgres")


@pytest.mark.parametrize("asked", ASKED)
def test_a_drill_runs_no_function_of_the_owner(container: Container, sql: Sql, asked: str) -> None:
    sql(FUNCTIONS)
    sql(WAYS)

    # A view in the place of a table may be an error, and nothing else.
    ask(container, *ASKED[asked], end="true")

    assert superusers(sql) == "postgres"


def test_a_drill_digests_rows(container: Container, sql: Sql) -> None:
    """The same rows have the same digest in any order, and others another one; the owner's cast is not used."""
    sql("CREATE TABLE one (id integer, note text); INSERT INTO one VALUES (1, NULL), (2, 'x')")
    sql("CREATE TABLE two (id integer, note text); INSERT INTO two VALUES (2, 'x'), (1, NULL)")
    sql("CREATE TABLE three (id integer, note text); INSERT INTO three VALUES (2, 'y'), (1, NULL)")

    digests = json.loads(ask(container, *ASKED["digests"]))

    assert digests["public.one"] == digests["public.two"] != digests["public.three"]
    assert digests["public.one"].startswith("2 ")
