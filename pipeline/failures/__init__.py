"""Every miss and false alarm on held-out images: what it costs, what it is near to, what may have caused it.

The kinds of error are those of TIDE (Bolya et al. 2020), each detection having one.
"""

from __future__ import annotations

from pipeline.failures.find import find

__all__ = ["find"]
