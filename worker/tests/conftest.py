"""Which tests concern the Prefect that is installed: old ones lack what some of them are about."""

import prefect

PREFECT = tuple(int(part) for part in prefect.__version__.split(".")[:3])

collect_ignore = [
    name
    for name, least in (
        # An executor that takes a starter.
        ("test_executor.py", (3, 8, 4)),
        # Flow runs whose heartbeats are a thread's.
        ("test_heartbeats.py", (3, 6, 24)),
    )
    if least > PREFECT
]
