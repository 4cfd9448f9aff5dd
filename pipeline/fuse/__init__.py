"""Labels out of several labellers' answers: people win, then what a certificate covers.

`merge` makes one answer of several, before anything is graded; `terms` finds the certificate that covers an
answer; `witness` what a verifier's word makes of one that is open; `labels` decides.
"""

from pipeline.fuse.labels import label_batch
from pipeline.fuse.merge import gradable, merge
from pipeline.fuse.terms import Standing, batch_slice
from pipeline.fuse.witness import Witness, open_to_verifier

__all__ = ["Standing", "Witness", "batch_slice", "gradable", "label_batch", "merge", "open_to_verifier"]
