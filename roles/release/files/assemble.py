"""Assemble a release: its code and its environment. Runs code of the source and of packages, so never as root.

Run by the builder's Python, next to which uv is installed, in the sandbox. Reads the specification, which the role's
``tasks/build.yml`` writes, from standard input, and prints what the manifest and the environment files are made of, as
JSON. If a step fails, prints the reason and exits with 1.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

UV = str(Path(sys.executable).with_name("uv"))
HERE = Path(__file__).parent


class BuildError(Exception):
    """A step failed; the message is meant for the operator."""


def main() -> int:
    """Assemble the specified release; return the exit code."""
    try:
        made = assemble(json.load(sys.stdin))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(made))
    return 0


def assemble(specification: dict[str, Any]) -> dict[str, Any]:
    """Assemble a release in its directory, which is empty; return what is to be written about it."""
    release = Path(specification["release"])
    app, environment = release / "app", release / "env"
    app.mkdir()
    run(
        "Unpacking the source",
        *("tar", "--extract", "--gzip", "--no-same-owner", "--file", specification["archive"], "--directory", app),
    )
    for place, source in specification["files"].items():
        if not (app / source).is_file():
            raise BuildError(f"The source has no file {source}: correct release_files or release_source_paths.")
        target = app / specification["working_directory"] / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(app / source, target)
    for name in ("working_directory", "alembic_directory"):
        if not (app / specification[name]).is_dir():
            raise BuildError(
                f"The source has no directory {specification[name]}: correct release_{name} or release_source_paths."
            )

    variables: dict[str, str] = {}
    requires = {"architecture": os.uname().machine}
    if specification["python"] == "conda":
        record = conda_prefix(specification, app, environment, release / "conda.json")
        variables = record["variables"]
        requires |= {"glibc": record["glibc"]} if record["glibc"] else {}
    else:
        # Of its version: after an upgrade of the distribution, /usr/bin/python3 is another one, without the packages.
        python = Path("/usr/bin/python3").resolve()
        run("Making a virtual environment", UV, "venv", "--quiet", "--python", python, environment)
        requires |= {"python": ".".join(map(str, sys.version_info[:2]))}
    fill(specification, app, environment)
    compiling: list[str | Path] = [environment / "bin/python", "-m", "compileall", "-q"]
    run("Compiling the application", *compiling, app)
    if specification["python"] == "conda":
        # Files that do not compile, such as templates, do not matter.
        for library in environment.glob("lib/python3.*"):
            command = [*compiling, "-q", "-j", "0", library]
            subprocess.run(command, check=False, capture_output=True)
    description = run(
        "Reading the schema's revisions",
        *(environment / "bin/python", HERE / "describe.py", specification["alembic_config"]),
        cwd=app / specification["alembic_directory"],
    )
    return {"description": json.loads(description), "requires": requires, "variables": variables}


def conda_prefix(specification: dict[str, Any], app: Path, prefix: Path, record_file: Path) -> dict[str, Any]:
    """Create a prefix of conda packages; return the record of its contents."""
    options = [option for channel in specification["channels"] for option in ("--channel", channel)]
    for original, mirror in specification["mirrors"].items():
        options += ["--mirror", f"{original}={mirror}"]
    run(
        "Making the conda prefix",
        *(sys.executable, HERE / "conda_prefix.py", "--source", app, "--prefix", prefix),
        *("--environment", specification["pixi_environment"], "--cache", specification["cache"]),
        *("--record", record_file, *options),
    )
    record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
    packages = {Path(package) for package in specification["packages"]}
    if forgotten := [path for path in record["local"] if Path(path) not in packages]:
        raise BuildError(f"pixi.lock names local packages that release_packages does not: {', '.join(forgotten)}")
    return record


def fill(specification: dict[str, Any], app: Path, environment: Path) -> None:
    """Install wheels and the application's own packages into an environment."""
    install: list[str | Path] = [
        UV,
        "pip",
        "install",
        "--quiet",
        "--python",
        environment / "bin/python",
    ]
    requirements = [] if specification["lock"] else specification["requirements"]
    for name in requirements + specification["constraints"]:
        if not (app / name).is_file():
            raise BuildError(f"The source has no file {name}: correct release_requirements or release_constraints.")
    if specification["lock"]:
        lock = environment.with_name("requirements.txt")
        lock.write_text(specification["lock"], encoding="utf-8")
        run("Installing release_lock", *install, "--require-hashes", "--requirement", lock)
    for name in requirements:
        run(f"Installing {name}", *install, "--require-hashes", "--requirement", app / name)
    constraints = [option for name in specification["constraints"] for option in ("--constraint", app / name)]
    if specification["extra_requirements"]:
        run("Installing release_extra_requirements", *install, *constraints, *specification["extra_requirements"])
    # uv contains the backend uv_build; other backends are fetched from the index, without a hash.
    offline = [] if specification["build_backends_from_index"] else ["--offline"]
    for name in specification["packages"]:
        run(f"Installing the local package {name}", *install, *offline, "--no-deps", app / name)
    run("Checking that packages fit together", UV, "pip", "check", "--quiet", "--python", environment / "bin/python")


def run(step: str, *command: str | Path, cwd: Path | None = None) -> str:
    """Run a command; return its output.

    Raises:
        BuildError: the command failed; the message names the step, the package and the reason where uv says them, and
            contains the end of the output.

    """
    with tempfile.TemporaryDirectory() as directory:
        output, errors = Path(directory, "output"), Path(directory, "errors")
        # Prefect makes a directory of its own wherever it is imported.
        environment = {**os.environ, "PREFECT_HOME": f"{directory}/prefect", "UV_LINK_MODE": "copy"}
        # Not to pipes: a process that the command has left would hold them open.
        with output.open("w") as out, errors.open("w") as err:
            done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, stdout=out, stderr=err)
        printed, said = (path.read_text(encoding="utf-8", errors="replace").strip() for path in (output, errors))
    if done.returncode != 0:
        said = said or printed
        raise BuildError("\n".join([f"{step} failed: {reason(said)}".rstrip(), *said.splitlines()[-20:]]))
    return printed


def reason(said: str) -> str:
    """Return in a sentence which package failed, and why, from what uv has printed; empty if that is not known."""
    if unfit := re.search(r"(?m)^The package `.+$", said):
        return f"{unfit[0]}."
    error = re.search(r"(?m)^error: (.+)", said)
    if not error:
        return ""
    causes = re.findall(r"(?m)^  cause: (.+)", said)
    if because := re.search(r"(?m)^  cause: Because (.+?)(?: and you require \S+?)?, we can conclude", said):
        why = because[1]
        if "network was disabled" in said:
            why += "; release_build_backends_from_index: true lets build backends be downloaded"
    elif log := re.search(r"(?m)^ +\[stderr\]\n((?:.*\n?)+?)(?:\n\S|\Z)", said):
        # What a compiler says first is the cause of the rest.
        lines = [line.strip() for line in log[1].splitlines() if line.strip()]
        why = next((line for line in lines if "fatal error:" in line), lines[-1])
    else:
        why = causes[-1] if causes else ""
    what = causes[0] if error[1].startswith("Request failed") else re.sub(r" @ file://\S+`", "`", error[1])
    if what.startswith("No solution found"):
        return f"{why}."
    return ": ".join(dict.fromkeys(part.rstrip(".") for part in (what, why) if part)) + "."


if __name__ == "__main__":
    sys.exit(main())
