"""How far this host's clock is from that of the API, and heartbeats that bear the API's time.

The server considers a flow run crashed by the time that its heartbeats bear. On a host whose clock is minutes slow they
would all be too old. Therefore they get the server's time, which a flow run computes from a clock that nobody sets: the
time since the host was booted.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from biocirv_worker.internals.events import before_sending

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event

# Environment variable of a flow run: the server's time at which this host was booted, in seconds since 1970.
VARIABLE = "SERVER_TIME_AT_BOOT"
# Clocks that differ by less are taken for equal, in seconds: a heartbeat may take longer.
TOLERANCE = 5

# Seconds: a date has no fractions, and the server renews it once a second.
_RESOLUTION = 2
_HEARTBEAT = "prefect.flow-run.heartbeat"


class Clock:
    """The clock of this host, compared with the API's."""

    def __init__(self) -> None:
        # Seconds by which this host's clock is ahead; negative if it is slow.
        self.ahead = 0.0
        # None until it is known.
        self.server_time_at_boot: float | None = None

    async def compare(self, client: PrefectClient) -> None:
        """Ask the API for its time.

        Raises:
            httpx.HTTPError: the API does not answer.

        """
        before = time.time()
        answer = await client.hello()
        after, now = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        if "Date" not in answer.headers:
            return
        # The server took its time between request and answer, which may be long on a busy one. Of all differences that
        # are possible, the least one counts.
        server = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        least, most = before - server - _RESOLUTION, after - server
        self.ahead = max(least, 0.0) + min(most, 0.0)
        self.server_time_at_boot = after - self.ahead - now

    @property
    def is_wrong(self) -> bool:
        """Whether the clocks differ by more than is tolerated."""
        return abs(self.ahead) > TOLERANCE

    def __str__(self) -> str:
        """Return by how much this host's clock is wrong."""
        return f"{abs(self.ahead):.0f} s {'fast' if self.ahead > 0 else 'slow'}"


def correct_heartbeats() -> None:
    """Let this process's heartbeats bear the server's time. Runs in a flow run's process."""
    if VARIABLE not in os.environ:
        return
    booted = float(os.environ[VARIABLE])

    def correct(event: Event) -> None:
        slow = booted + time.clock_gettime(time.CLOCK_BOOTTIME) - time.time()
        if event.event == _HEARTBEAT and abs(slow) > TOLERANCE:
            event.occurred += timedelta(seconds=slow)

    before_sending(correct)
