"""Backups that any second can be restored from: what pgBackRest leaves to its caller."""
