"""Dagster definitions: one group of assets per stage and project. The work itself is in pipeline/."""
