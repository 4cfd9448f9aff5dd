"""Dagster's default run launcher, which also notices that a run's host is gone.

Runs are children of a code server. Where a run's process dies, its code server says so; but where the whole host
dies, nobody does: Dagster's default launcher cannot be asked, and the run would be shown as running for ever.
This one is asked by run monitoring (`run_monitoring` in dagster.yaml): it asks the code server that started the run.
A server that has not answered for `grace_seconds` is gone, and its runs with it: they are marked as failed, and
`run_retries` starts each again, which goes on at its last finished shard. Runs of `cvp run` are marked as failed
when their process is gone; starting them again is left to whoever started them.
"""

import time
from collections.abc import Mapping
from typing import Any, Self

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import ConfigurableClassData, deserialize_value

from assets import origin

_ANSWER_SECONDS = 10


class WatchedRunLauncher(DefaultRunLauncher):
    """For `run_launcher` in dagster.yaml.

    Args:
        grace_seconds: for so long a code server may be silent, be it busy, started anew, or cut off for a moment.
    """

    def __init__(self, grace_seconds: float = 60, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self.grace_seconds = grace_seconds
        self._silent_since: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> Any:
        return {"grace_seconds": dg.Field(float, default_value=60.0, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        return cls(config_value["grace_seconds"], inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a run that is shown as running still is."""
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:  # no code server started it: `cvp run` in a terminal
            why = origin.gone(self._instance, run)
            return CheckRunHealthResult(WorkerStatus.FAILED if why else WorkerStatus.RUNNING, why)
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id), timeout=_ANSWER_SECONDS)
            alive = deserialize_value(answer, CanCancelExecutionResult).can_cancel
            why = "its code server no longer knows it"
        except DagsterUserCodeUnreachableError:
            alive, why = False, "its code server does not answer: that host or process is gone"
        if alive:
            self._silent_since.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        silent = time.monotonic() - self._silent_since.setdefault(run.run_id, time.monotonic())
        if silent < self.grace_seconds:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"no sign of life for {silent:.0f} s")
        del self._silent_since[run.run_id]
        return CheckRunHealthResult(WorkerStatus.FAILED, why)
