"""The flows of the survey; they run in this file's directory."""

import json
import os
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.states import Completed, Failed
from soil.maps.summary import deepest, refresh  # type: ignore[import-not-found] # a namespace package
from soil_survey.database import SettingsError, engine
from soil_survey.load import SitesError, load, read
from soil_survey.report import farthest


@flow(name="soil-survey")
def survey() -> State[Any]:
    """Load ``SOIL_SITES`` (default: sites.csv); requires a laboratory's credentials in ``SOIL_CREDENTIALS``."""
    try:
        account = _account()
        records = read(Path(os.environ.get("SOIL_SITES") or "sites.csv"))
        with engine().begin() as connection:
            counts = load(connection, records)
    except (SettingsError, SitesError) as error:
        return Failed(message=str(error))
    return Completed(message=f"{counts}, for {account}")


@flow(name="soil-report")
def report() -> State[Any]:
    """Report the distance of the two sites that are farthest apart."""
    try:
        with engine().connect() as connection:
            found = farthest(connection)
    except SettingsError as error:
        return Failed(message=str(error))
    if not found:
        return Failed(message="There are no two sites: run the deployment survey-nightly first")
    one, other, distance = found
    return Completed(message=f"{one} and {other} are farthest apart: {distance:.1f} km")


@flow(name="soil-summary")
def summary() -> State[Any]:
    """Refresh the view of the deepest horizons; the key in ``SOIL_API_KEY`` is for the service that will publish it."""
    try:
        with engine().begin() as connection:
            refresh(connection)
            found = deepest(connection)
    except SettingsError as error:
        return Failed(message=str(error))
    if not found:
        return Failed(message="There is no site: run the deployment survey-nightly first")
    if not os.environ.get("SOIL_API_KEY"):
        return Failed(message="SOIL_API_KEY is not set")
    site, depth = found
    return Completed(message=f"{site} is the deepest: {depth:g} cm")


def _account() -> str:
    path = os.environ.get("SOIL_CREDENTIALS")
    if not path:
        raise SettingsError("SOIL_CREDENTIALS is not set: set it to the path of the laboratory's credential file")
    try:
        return str(json.loads(Path(path).read_text(encoding="utf-8"))["account"])
    except OSError as error:
        raise SettingsError(f"SOIL_CREDENTIALS: {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):  # their messages would show secrets
        raise SettingsError(f"SOIL_CREDENTIALS: {path} is not a JSON object with an account") from None
