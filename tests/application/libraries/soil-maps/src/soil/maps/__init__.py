"""Summaries of the survey."""
