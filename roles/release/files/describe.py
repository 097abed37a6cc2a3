"""Print the contents of a release as JSON: run by the release's own Python, in the directory of its alembic.ini."""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path, PurePath

import prefect
from alembic.config import Config
from alembic.script import ScriptDirectory


def main() -> None:
    """Print the JSON. The only argument is the name of alembic's configuration."""
    # Prefect has no public interface for its schema's revision. If its layout changes, none is found, and the upgrade
    # runs at every converge.
    scripts = Path(prefect.__file__).parent / "server/database/_migrations"
    server = Config()
    server.set_main_option("script_location", str(scripts))
    server.set_main_option("version_locations", str(scripts / "versions/postgresql"))

    local, installed = set(), []
    for distribution in importlib.metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if "dir_info" in origin:
            local |= {name for path in distribution.files or [] if (name := module(path))}
        else:
            installed.append(f"{distribution.name}=={distribution.version}")
    print(
        json.dumps(
            {
                **schema("application", Config(sys.argv[1])),
                **schema("prefect", server),
                "prefect_version": importlib.metadata.version("prefect"),
                # If only the application's own packages change, processes that do not import them need no restart.
                "environment": digest([sys.version, *sorted(installed), *sorted(conda_packages())]),
                "modules": sorted(local),
            }
        )
    )


def module(path: PurePath) -> str:
    """Return the module that a file of a distribution is, or an empty string; running is what `__main__` is for."""
    parts = [*path.parent.parts, path.stem] if path.stem != "__init__" else path.parent.parts
    is_one = path.suffix == ".py" and path.stem != "__main__" and all(part.isidentifier() for part in parts)
    return ".".join(parts) if is_one else ""


def schema(name: str, config: Config) -> dict[str, list[str]]:
    """Return the head revisions of the scripts, and all revisions that they contain."""
    scripts = ScriptDirectory.from_config(config)
    revisions = [script.revision for script in scripts.walk_revisions()]
    return {f"{name}_schema": sorted(scripts.get_heads()), f"{name}_revisions": sorted(revisions)}


def conda_packages() -> list[str]:
    """Return the conda packages of this prefix, with versions and builds."""
    return [path.stem for path in Path(sys.prefix, "conda-meta").glob("*.json")]


def digest(lines: list[str]) -> str:
    """Return a short digest."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


if __name__ == "__main__":
    main()
