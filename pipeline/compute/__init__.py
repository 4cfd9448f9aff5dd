"""Where the work runs: in this process, in local processes, or on Ray. The tables are the same."""

from pipeline.compute.devices import device_of
from pipeline.compute.job import AheadWorker, Compute, Load, Progress, Worker
from pipeline.compute.on_ray import connect_ray
from pipeline.compute.shards import in_order, map_batches, map_shards, without

__all__ = [
    "AheadWorker",
    "Compute",
    "Load",
    "Progress",
    "Worker",
    "connect_ray",
    "device_of",
    "in_order",
    "map_batches",
    "map_shards",
    "without",
]
