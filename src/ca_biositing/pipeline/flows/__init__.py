"""Prefect flows: each says which worksheet goes into which table; the work is done in ``etl``."""
