"""Can a classifier tell the batch from the reference? (Lopez-Paz & Oquab 2017; Kim et al. 2021)"""

from __future__ import annotations

import numpy as np

from pipeline.drift.permutations import Auc, auc_parts
from pipeline.drift.sides import Blocks, Flags, Floats

LEAST_BLOCKS = 4  # a side: two to learn from, two to be told apart
_REGULAR = 0.01  # inverse strength of the penalty: there are often more dimensions than images


def training_half(blocks: Blocks, draw: int) -> Flags:
    """(blocks,) half of each side's blocks, drawn without a look at them."""
    rng = np.random.default_rng(draw)
    chosen = np.zeros(len(blocks.in_batch), bool)
    for side in (True, False):
        mine = np.flatnonzero(blocks.in_batch == side)
        chosen[rng.permutation(mine)[: len(mine) // 2]] = True
    return chosen


def held_out_auc(vectors: Floats, blocks: Blocks, draw: int) -> tuple[Auc, Blocks]:
    """The AUC on one half of the locations of a logistic regression that learned from the other half.

    Given what was learned, the held-out blocks can be exchanged between the sides if the batch is like the
    reference, so `permutation_test` of the result is exact, however the classifier was made.

    Args:
        vectors: (n, d), one an image. blocks: of the n images, LEAST_BLOCKS or more a side.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learned = training_half(blocks, draw)
    train = learned[blocks.number]
    side = blocks.in_batch[blocks.number]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=_REGULAR, class_weight="balanced", max_iter=500))
    model.fit(vectors[train], side[train])
    scores = np.asarray(model.decision_function(vectors[~train]), np.float64)
    number = np.unique(blocks.number[~train], return_inverse=True)[1].reshape(-1)
    return auc_parts(scores), Blocks(np.asarray(number, np.int64), blocks.in_batch[~learned], blocks.shared)
