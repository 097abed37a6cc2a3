"""Measure a converge: a shell script that installs the same by hand, a first converge, one without a change.

All on containers from the same image, one after the other. Prints wall times, their ratios, the number of tasks and
the slowest of them; it judges nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
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
HOSTS = """
all:
  hosts:
    {name}:
      ansible_connection: community.docker.docker
      ansible_python_interpreter: /usr/bin/python3
      target_debian: {debian}
  children:
    database: {{hosts: {{{name}: }}}}
    prefect_server: {{hosts: {{{name}: }}}}
    prefect_worker: {{hosts: {{{name}: }}}}
"""


def run(*command: str) -> tuple[float, str]:
    """Run a command to its end; return its wall time in seconds and its output."""
    environment = {
        **os.environ,
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "10",
        "ANSIBLE_NOCOLOR": "1",
    }
    begin = time.monotonic()
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


def tasks(output: str) -> str:
    """Return how many tasks ran, and the slowest ten."""
    recap = re.search(r"ok=(\d+) +changed=(\d+)", output)
    slowest = output.split("=" * 70)[-1].strip("= \n")
    return f"{recap[0] if recap else ''}, the slowest ten:\n{slowest}\n"


def main() -> None:
    """Run the three measurements on fresh containers."""
    name = "biocirv-bench"
    with tempfile.TemporaryDirectory() as directory:
        inventory = Path(directory) / "inventory"
        inventory.mkdir()
        (inventory / "hosts.yml").write_text(HOSTS.format(name=name, debian=os.environ.get("DEBIAN", "13")), "utf-8")
        shutil.copytree(ROOT / "inventory/local/group_vars", inventory / "group_vars")

        def play(playbook: str) -> tuple[float, str]:
            return run("ansible-playbook", "--inventory", str(inventory), playbook)

        try:
            play("target/destroy.yml")
            play("target/create.yml")
            source = Path(directory) / "source"
            source.mkdir()
            run("cp", "-r", *SOURCE, str(source))
            run("docker", "cp", str(source), f"{name}:/root/source")
            run("docker", "cp", str(ROOT / "benchmarks/by_hand.sh"), f"{name}:/root/by_hand.sh")
            for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
                run("docker", "cp", str(certificate), f"{name}:/usr/local/share/ca-certificates/")
            by_hand, _ = run("docker", "exec", name, "sh", "/root/by_hand.sh", "/root/source")

            play("target/destroy.yml")
            play("target/create.yml")
            first, first_output = play("site.yml")
            again, again_output = play("site.yml")
        finally:
            play("target/destroy.yml")

    print(f"(a) by hand            {by_hand:6.1f} s")
    print(f"(b) first converge     {first:6.1f} s   {first / by_hand:4.2f} of (a)\n    {tasks(first_output)}")
    print(f"(c) without a change   {again:6.1f} s   {again / by_hand:4.2f} of (a)\n    {tasks(again_output)}")


if __name__ == "__main__":
    main()
