"""A conda channel and lock files for tests, made on the spot: no real channel can be reached where tests run."""
