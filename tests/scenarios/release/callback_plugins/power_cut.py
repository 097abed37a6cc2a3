"""Callback plugin that kills ansible-playbook with SIGKILL after a number of tasks of the role `release`."""

import os
import signal
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: power_cut
type: aggregate
short_description: Kill ansible-playbook after so many tasks of a role
description: The variable POWER_CUT_AFTER says after how many.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc] # ansible carries no types
    """Counts the tasks of the role that have run on a host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "power_cut"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._left = int(os.environ["POWER_CUT_AFTER"])
        self._seen: set[str] = set()

    def v2_runner_on_ok(self, result: Any) -> None:  # noqa: ANN401 - Ansible does not type it
        """Count a task once, whatever the number of hosts."""
        task = result.task
        role = task._role.get_name() if task._role else ""
        if role != "release" or task.action in ("include_tasks", "ansible.builtin.include_tasks"):
            return
        if task._uuid in self._seen:
            return
        self._seen.add(task._uuid)
        self._left -= 1
        if self._left == 0:
            os.killpg(os.getpgid(0), signal.SIGKILL)
