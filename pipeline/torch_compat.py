"""One mend for one known break: a CUDA-linked torchvision beside a CPU torch.

Package indexes serve a torchvision that is linked to CUDA. Beside a CPU build of torch its native
operators cannot load, and `import torchvision` ends with "operator torchvision::nms does not exist".
We then register the schemas that the import needs, with a pure-torch NMS, and import again.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_SYMPTOM = "operator torchvision::nms does not exist"
_library: Any = None  # keeps the registrations alive


def import_torchvision() -> Any:
    """The torchvision module. Call before importing anything that imports torchvision itself.

    Raises:
        RuntimeError, ImportError: any failure other than the one known.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _register_nms()
    module = importlib.import_module("torchvision")
    # Its own guard would still refuse nms; operators that are truly missing raise by themselves.
    module.extension._has_ops = lambda: True
    return module


def _register_nms() -> None:
    global _library
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", _nms, "CompositeExplicitAutograd")


def _nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Greedy NMS with the semantics of torchvision's: suppress where IoU > threshold."""
    import torch

    order = torch.argsort(scores, descending=True, stable=True)
    b = dets[order]
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    alive = torch.ones(len(b), dtype=torch.bool, device=b.device)
    for i in range(len(b)):
        if not alive[i]:
            continue
        rest = b[i + 1 :]
        low = torch.maximum(rest[:, :2], b[i, :2])
        high = torch.minimum(rest[:, 2:], b[i, 2:])
        side = (high - low).clamp(min=0)
        common = side[:, 0] * side[:, 1]
        union = areas[i + 1 :] + areas[i] - common
        alive[i + 1 :] &= ~(common > iou_threshold * union)
    return order[alive]
