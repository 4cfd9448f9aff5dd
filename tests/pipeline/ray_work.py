"""Shards on a Ray cluster, from a process of its own: python -m tests.pipeline.ray_work ADDRESS FOLDER SETTINGS."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path

import pyarrow as pa

from pipeline.compute import Compute, map_batches
from pipeline.errors import PipelineError
from pipeline.store import Store


class Notes:
    """Leaves a file for each batch that says who did it, on which GPUs, and when."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.time()
        time.sleep(0.2)
        # From the environment: a shard whose actor died is done in a child of another, which Ray does not know.
        note = {
            "pid": os.getpid(),
            "node": os.environ["RAY_RAYLET_PID"],
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        note |= {"threads": os.environ["OMP_NUM_THREADS"], "began": began, "ended": time.time()}
        path = self.folder / uuid.uuid4().hex
        path.write_text(json.dumps(note))
        path.rename(path.with_suffix(".note"))
        return rows


def main() -> None:
    address, folder, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    rows = pa.table({"n": range(36)})
    machines: set[str] = set()
    compute = Compute(
        address, batch_size=1, batches_per_shard=1, load=lambda load: machines.update(load.nodes), **settings
    )
    try:
        found = map_batches(Notes, {"folder": folder}, rows, compute, Store(folder).staging("quality", "b", "f"))
    except PipelineError as error:
        print(error.what)
        raise SystemExit(1) from None
    assert found.equals(rows)
    (Path(folder) / "machines.json").write_text(json.dumps(sorted(machines)))


if __name__ == "__main__":
    main()
