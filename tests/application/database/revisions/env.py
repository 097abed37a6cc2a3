"""Alembic's environment: connects to ``SOIL_DATABASE_URL``; revisions are written by hand."""

import sys
from logging.config import fileConfig

from alembic import context
from soil_survey.database import SettingsError, database_url, engine

if context.config.config_file_name:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
try:
    url = database_url()
except SettingsError as error:
    sys.exit(str(error))  # one line instead of alembic's traceback
if context.is_offline_mode():
    context.configure(url=url, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    with engine().begin() as connection:
        context.configure(connection=connection)
        context.run_migrations()
