"""Measure a converge: an equivalent shell script, a first converge, and one without changes; on one and on four hosts.

All run on containers of the same image, one after the other: one host with every service, then a database, a server and
two workers. Prints wall times, their ratios, the number of tasks and the slowest of them; it does not pass or fail.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = [
    "alembic.ini",
    "data",
    "deploy.py",
    "migrations",
    "prefect.yaml",
    "pyproject.toml",
    "requirements",
    "run_prefect_flow.py",
    "src",
]
ONE = {"biocirv-bench": ["database", "prefect_server", "prefect_worker"]}
FOUR = {
    "biocirv-bench-database": ["database"],
    "biocirv-bench-server": ["prefect_server"],
    "biocirv-bench-worker1": ["prefect_worker"],
    "biocirv-bench-worker2": ["prefect_worker"],
}
CONTAINER: dict[str, object] = {
    "ansible_connection": "community.docker.docker",
    "ansible_python_interpreter": "/usr/bin/python3",
    "container_debian": int(os.environ.get("DEBIAN", "13")),
}
# Variables of separate hosts, which reach each other by name.
APART: dict[str, object] = {
    "container_network": "biocirv-bench",
    "database_address": "biocirv-bench-database",
    "database_clients": ["172.16.0.0/12"],
    "postgresql_listen_addresses": ["*"],
    "prefect_api_url": "https://biocirv-bench-server/api",
}


def run(*command: str) -> tuple[float, str]:
    """Run a command to its end; return its wall time in seconds and its output."""
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "10",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }
    begin = time.monotonic()
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


def play(inventory: Path, playbook: str) -> tuple[float, str]:
    """Run a playbook on an inventory; return its wall time in seconds and its output."""
    return run("ansible-playbook", "--inventory", str(inventory), playbook)


def write_inventory(directory: Path, hosts: dict[str, list[str]], variables: dict[str, object]) -> Path:
    """Write an inventory of containers with their groups; return its directory."""
    groups: dict[str, dict[str, dict[str, None]]] = {}
    for host, names in hosts.items():
        for name in names:
            groups.setdefault(name, {"hosts": {}})["hosts"][host] = None
    directory.mkdir()
    listing = {"all": {"hosts": dict.fromkeys(hosts, CONTAINER | variables), "children": groups}}
    (directory / "hosts.yml").write_text(json.dumps(listing), encoding="utf-8")
    shutil.copytree(ROOT / "inventory/local/group_vars", directory / "group_vars")
    return directory


@contextmanager
def containers(inventory: Path) -> Iterator[None]:
    """Recreate an inventory's containers, and remove them afterwards."""
    play(inventory, "containers/destroy.yml")
    try:
        play(inventory, "containers/create.yml")
        yield
    finally:
        play(inventory, "containers/destroy.yml")


def by_hand(directory: Path) -> float:
    """Install the platform by a script on the one host; return the duration in seconds."""
    (name,) = ONE
    source = directory / "source"
    source.mkdir()
    run("cp", "-r", *SOURCE, str(source))
    run("docker", "cp", str(source), f"{name}:/root/source")
    run("docker", "cp", str(ROOT / "benchmarks/by_hand.sh"), f"{name}:/root/by_hand.sh")
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        run("docker", "cp", str(certificate), f"{name}:/usr/local/share/ca-certificates/")
    seconds, _ = run("docker", "exec", name, "sh", "/root/by_hand.sh", "/root/source")
    return seconds


def tasks(output: str) -> str:
    """Return how many tasks ran on each host, and the slowest ten."""
    recap = ", ".join(" ".join(counts) for counts in re.findall(r"(ok=\d+) +(changed=\d+)", output))
    slowest = output.split("=" * 70)[-1].strip("= \n")
    return f"{recap}, the slowest ten:\n{slowest}\n"


def main() -> None:
    """Run the measurements, each on fresh containers."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        one = write_inventory(directory / "one", ONE, {})
        four = write_inventory(directory / "four", FOUR, APART)
        with containers(one):
            script = by_hand(directory)
        with containers(one):
            first, first_output = play(one, "site.yml")
            again, again_output = play(one, "site.yml")
        with containers(four):
            first_of_four, first_of_four_output = play(four, "site.yml")
            again_of_four, again_of_four_output = play(four, "site.yml")

    print(f"(a) by hand            {script:6.1f} s")
    print(f"(b) first converge     {first:6.1f} s   {first / script:4.2f} of (a)\n    {tasks(first_output)}")
    print(f"(c) without a change   {again:6.1f} s   {again / script:4.2f} of (a)\n    {tasks(again_output)}")
    for title, seconds, of_one, base, output in (
        ("(d) (b), four hosts    ", first_of_four, first, "(b)", first_of_four_output),
        ("(e) (c), four hosts    ", again_of_four, again, "(c)", again_of_four_output),
    ):
        growth = f"{(seconds - of_one) / 3:.1f} s for each host more"
        print(f"{title}{seconds:6.1f} s   {seconds / of_one:4.2f} of {base}, {growth}\n    {tasks(output)}")


if __name__ == "__main__":
    main()
