"""Is a batch like the reference? Two questions, since they have different answers.

**Same mixture?** `embedding_mmd`, `embedding_classifier`, `embedding_ks`, `appearance_ks`, `score_ks`, `count_ks`,
`label_mix`, `score_mix` and `slice_mix` ask whether the batch and the reference are samples of one distribution.
The first is the unbiased squared maximum mean discrepancy (Gretton et al. 2012) with a Gaussian kernel whose
squared bandwidth is the median squared distance of the pooled vectors.

Beyond MAX_IMAGES or MAX_VECTORS a side (`sides`), not every pair of images can be looked at. Then `embedding_mmd`, its
witness and its power come from random features of all images; `embedding_novelty`, `appearance_novelty` and the
classifier look at a sample, drawn by hash, and their notes say so; everything else counts all images.

Their p-values come from permutations, and a permutation is only as good as what it exchanges. Tiles
and windows of one photo are alike because they are neighbours, so exchanging *them* answers another
question ("is this one photo?"), nearly always with yes: on the trees sample it calls 4 in 10 of the
reference's own tiles drifted at 0.01. So whole **locations** are exchanged (by default a location
is a photo). All splits are enumerated where there are no more than `permutations`; otherwise
p = (1 + #) / (1 + B) (Phipson & Smyth 2010), with more draws where p is small. One photo against two has three
splits, and no p below 1/3: the note says so, and the question is left open rather than answered wrongly. The
`_ks` tests of dimensions take a location's mean for one observation instead.

**Anything new?** `embedding_novelty` and `appearance_novelty` ask whether the batch's images lie where
the reference has none: a subset of the reference's mixture is not new, however uneven. An image's
novelty is the logarithm of a distance: of its windows to those of the nearest reference image, as squared
MMD of two sets (nearest neighbours as in Sun et al. 2022; with unit `image` the sets have one vector
each), or of its quality measures to the reference's mean, by Mahalanobis. The reference's own images are
scored in the same way with their neighbourhood left out, and the batch's mean is compared with them by
Student's t of a new observation, one-sided. The t extrapolates the tail as normal, which one image
against n needs: a permutation has no p below 1/(n + 1) there.

Neighbourhood and count depend on what there is. With MIN_LOCATIONS reference locations or more, a
location is one observation and is left out whole. With fewer, an image is one observation, the
images that share pixels with it are left out, and overlapping tiles count by the area that they cover
together. The price of the latter: differences between photos that the reference does not show are taken
for drift. It should hold photos of every kind that is to pass as normal. On the trees sample, each
tile of the reference against those that it shares no pixels with is called novel at 0.01 in 2 to 5 of
100 cases, at 0.05 in 3 to 11.

`examine` also tells which images and regions of embedding space drive a difference, and the smallest shift
that so many images would have shown; `alarms` bounds false alarms over many batches.
"""

from pipeline.drift.alarms import alarms, standing
from pipeline.drift.examine import TABLES, examine, test_batch
from pipeline.drift.reference import reference_images

__all__ = ["TABLES", "alarms", "examine", "reference_images", "standing", "test_batch"]
