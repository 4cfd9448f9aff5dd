"""Blocks of project.yaml about prices, budgets, schedules and the cluster."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pipeline.config.section import Section


class PriceConfig(Section):
    currency: str = "USD"
    cpu_hour: float = Field(0.10, ge=0, description="one hour of this machine")
    gpu_hour: float = Field(2.50, ge=0, description="one GPU hour")
    human_box: float = Field(0.05, ge=0, description="a person draws one box")
    human_image: float = Field(0.03, ge=0, description="a person classifies or opens one image")
    human_look: float = Field(0.01, ge=0, description="a person says yes or no to one proposed label")
    token_million: float = Field(0.0, ge=0, description="a million tokens sent to the verifier")
    token_million_written: float | None = Field(
        None, ge=0, description="a million tokens that it writes; null: as those sent"
    )

    def tokens(self, sent: Any, written: Any) -> Any:
        """Price of so many tokens; of arrays, each."""
        each = self.token_million if self.token_million_written is None else self.token_million_written
        return (sent * self.token_million + written * each) / 1e6


class RayConfig(Section):
    cpus: float = Field(1, gt=0, description="CPUs of an actor: so many threads decode photos ahead of its model")
    gpus: float | None = Field(None, ge=0, description="GPUs of an actor, also below 1; null: 1 if the cluster has any")
    min_workers: int = Field(1, gt=0, description="actors that must be up before work begins; at most: workers")
    patience: float = Field(300, gt=0, description="seconds to wait for them: an autoscaler may start machines first")

    @field_validator("cpus", "gpus")
    @classmethod
    def _divisible(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a share below 1, or a whole number")
        return value


class BudgetConfig(Section):
    """What a stage or table may cost, by the ledger. Null: as much as it takes."""

    money: float | None = Field(None, ge=0, description="in the currency of the prices; null: no limit")
    hours: float | None = Field(None, ge=0, description="of machine time; null: no limit")
    days: float | None = Field(None, gt=0, description="only what was spent in the last days counts; null: all")


class ScheduleConfig(Section):
    new_data: str = Field("0 * * * *", description="cron: label what is new")
    training: str = Field("0 2 * * 0", description="cron: retrain and choose again")
    monitoring: str = Field("30 3 * * *", description="cron: drift, costs, report")
    sensor_seconds: int = Field(60, ge=5, description="how often the source is looked at")
