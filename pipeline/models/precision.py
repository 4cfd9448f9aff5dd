"""What networks compute in: float32 on a CPU, and on a GPU as asked."""

from __future__ import annotations

from typing import Any, Literal

Precision = Literal["float32", "bfloat16", "float16"]


def autocast(device: str, precision: str) -> Any:
    """torch's autocast for a forward pass; it does nothing on a CPU, and nothing for float32.

    Args:
        precision: of `Precision`, or auto: the half precision that the GPU is made for.
    """
    import torch

    half = device == "cuda" and precision != "float32"
    if half and precision == "auto":
        precision = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return torch.autocast(device, getattr(torch, precision) if half else None, enabled=half)
