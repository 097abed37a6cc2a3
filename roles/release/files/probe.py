"""Test a release before its activation: its modules can be imported, and the flows in prefect.yaml can be loaded.

Run by the release's own Python, in its working directory, as an account without write permission. Prints one line for
each module or flow that cannot be loaded, and then exits with 1.
"""

import importlib
import json
import sys
from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint


def main() -> int:
    """Run all tests; return the exit code. The only argument is the path of the release's manifest."""
    modules = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["modules"]
    problems = [problem for module in modules if (problem := failing_import(module))]
    try:
        declared = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
        entrypoints = {deployment["name"]: deployment["entrypoint"] for deployment in declared}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        problems.append(f"prefect.yaml cannot be read: {reason(error)}")
        entrypoints = {}
    for name, entrypoint in entrypoints.items():
        if problem := failing_entrypoint(entrypoint):
            problems.append(f"prefect.yaml, deployment {name}: entrypoint {entrypoint} does not load: {problem}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def failing_import(module: str) -> str:
    """Return the reason why a module cannot be imported, or an empty string."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - code at module level may raise any exception
        return f"{module} cannot be imported: {reason(error)}"
    return ""


def failing_entrypoint(entrypoint: str) -> str:
    """Return the reason why a flow cannot be loaded, or an empty string."""
    try:
        load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    except Exception as error:  # noqa: BLE001 - code at module level may raise any exception
        # Prefect wraps the script's exception.
        return reason(error.__cause__ or getattr(error, "user_exc", None) or error)
    return ""


def reason(error: BaseException) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    sys.exit(main())
