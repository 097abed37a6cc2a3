"""Prefect flows: each declares which worksheet is loaded into which table; ``etl`` does the work."""

from importlib import import_module
from pkgutil import iter_modules

from ca_biositing.pipeline.etl.dataset import Dataset


def datasets() -> list[Dataset]:
    """Return the datasets of all flows, in the order of their modules' names."""
    modules = [import_module(f"{__name__}.{each.name}") for each in iter_modules(__path__)]
    values = (value for module in modules for value in vars(module).values())
    # By name: a module may import another's dataset.
    return list({value.name: value for value in values if isinstance(value, Dataset)}.values())
