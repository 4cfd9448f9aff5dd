"""What Dagster is told of the batches that a step makes: each its own materialisation, at its content's version.

Of what a step returns, Dagster puts one data version on all partitions of the run's range, and only when the step
has ended. A batch that nobody touched would make everything after it look stale, and those that were made before a
failure would not count. So each batch is told as soon as it is committed, and the step then returns what tells nothing.
"""

from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.execution.plan.execute_step import (
    _build_data_version_tags,
    _get_code_version,
    _get_input_provenance_data,
)
from dagster._core.storage.tags import BACKFILL_ID_TAG


def of_batch(
    context: dg.AssetExecutionContext, key: dg.AssetKey, batch: str, content: str, metadata: dict[str, Any]
) -> dg.AssetMaterialization:
    """A batch of a table, with the versions of code and inputs that Dagster tells staleness by."""
    step = context.get_step_execution_context()
    inputs = _get_input_provenance_data(key, step)
    tags = _build_data_version_tags(dg.DataVersion(content), _get_code_version(key, step), inputs, True)
    if backfill := context.run.tags.get(BACKFILL_ID_TAG):
        tags[BACKFILL_ID_TAG] = backfill
    return dg.AssetMaterialization(key, partition=batch, metadata=metadata, tags=tags)


def is_known(context: dg.AssetExecutionContext, key: dg.AssetKey, batch: str, content: str) -> bool:
    """Whether Dagster has this very content as made by this very code.

    A backfill fails unless it is told of every batch that it asked for, so for one nothing is known."""
    if BACKFILL_ID_TAG in context.run.tags:
        return False
    record = context.instance.get_latest_data_version_record(key, partition_key=batch)
    tags = (record.event_log_entry.tags or {}) if record else {}
    code = _get_code_version(key, context.get_step_execution_context())
    return (tags.get(DATA_VERSION_TAG), tags.get(CODE_VERSION_TAG)) == (content, code)


def nothing_more(key: dg.AssetKey) -> dg.MaterializeResult:
    """The result of a step whose batches were told one by one: what comes after may begin, and no event is written."""
    return dg.MaterializeResult(asset_key=key, metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})
