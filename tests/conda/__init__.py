"""A conda channel and lock files, generated for tests, which have no access to a real channel."""
