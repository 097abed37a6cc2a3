"""Print what a release contains, as JSON: it is run by the release's own Python, in its working directory."""

import importlib.metadata
import json
from pathlib import Path

import prefect
from alembic.config import Config
from alembic.script import ScriptDirectory

application = ScriptDirectory.from_config(Config("alembic.ini"))

# Prefect does not publish which revision its schema has. Where its layout changes, none is found, and the upgrade
# runs at every converge.
prefect_scripts = Path(prefect.__file__).parent / "server/database/_migrations"
prefect_config = Config()
prefect_config.set_main_option("script_location", str(prefect_scripts))
prefect_config.set_main_option("version_locations", str(prefect_scripts / "versions/postgresql"))

print(
    json.dumps(
        {
            "id": Path.cwd().parent.name,
            "application_schema": sorted(application.get_heads()),
            "prefect_schema": sorted(ScriptDirectory.from_config(prefect_config).get_heads()),
            "prefect_version": importlib.metadata.version("prefect"),
        }
    )
)
