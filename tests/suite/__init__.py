"""Runs the parts of the test suite, two at a time, and reports what failed and why."""
