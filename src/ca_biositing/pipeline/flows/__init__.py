"""Prefect flows: each declares which worksheet is loaded into which table; ``etl`` does the work."""
