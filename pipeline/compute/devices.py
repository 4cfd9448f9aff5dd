"""What work is priced as."""

from pipeline.compute.job import Compute
from pipeline.compute.on_ray import connect_ray


def device_of(compute: Compute) -> str:
    """'cuda' where models run on GPUs, else 'cpu'.

    On Ray: whether the cluster has GPUs and actors are given any.
    """
    if compute.on_ray:
        return "cuda" if compute.gpus != 0 and connect_ray(compute.mode).cluster_resources().get("GPU", 0) else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
