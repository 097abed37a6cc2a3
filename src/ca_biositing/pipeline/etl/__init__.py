"""Extract, transform and load, each callable without Prefect."""
