"""Which images may be trained on, tuned on and tested on, so that nothing leaks between them.

1. Rules of project.yaml decide first: the first whose predicate an image fulfils.
2. The rest is drawn by location. A location's fate hangs on the hash of its name and the seed alone:
   the hash, read as a number in [0, 1), falls into test's share, val's, or train's. Adding images moves
   none that were there. (Locations that near-duplicates link are drawn as one, under the smallest of
   their names, and a location of which a rule took an image follows that rule.)
   With `stratify`, groups are dealt out instead so that each class's labels, and the images, are divided
   as the shares say (`balanced`): better balanced where groups are few or uneven, but new images may move others.
3. Without `stratify`: where all of a location's labels are of one class, a class with at least three
   such locations has at least one in test and one in val, if these are to have a share at all: those with the
   smallest hashes. A new location takes the place only with a still smaller hash.
4. A near-duplicate goes where the kept image of its cluster goes.
5. An image that people have not labelled can be neither trained on nor tested on: it is `unlabelled`,
   whatever the rules say.

Where 2 or 4 takes an image out of the split that its own rule, or its location's name alone, would give it,
`moved_from` and `moved_by` say so: leakage that was found and mended. (With `stratify` no location has a split of its
own.) Rules that divide a location are not mended but refused, unless `straddle` allows it.

An image that arrived in more than one batch has one row, that of its first batch in sorted order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import SplitConfig
from pipeline.ids import fingerprint
from pipeline.predicates import matches

DRAWN = ("train", "val", "test")
_ROUNDS = 20
_TINY = 1e-12
_FEW = 3000  # groups; of more, single moves balance well enough
_NONE, UNLABELLED = -1, len(DRAWN)

Amounts = NDArray[np.float64]
Ints = NDArray[np.int64]


def assign_splits(
    images: pa.Table,
    annotated_images: pa.Table,
    ground_truth: pa.Table,
    duplicates: pa.Table,
    config: SplitConfig,
) -> pa.Table:
    """The `splits` table: one row an image_id, sorted.

    Args:
        images, annotated_images, ground_truth: rows of all batches. duplicates: as found.

    Raises:
        ConfigError: a rule is not a predicate over the columns of `images`.
    """
    rows = _first_arrivals(images)
    places = _Places.of(rows.column("image_id"), rows.column("location"), duplicates)
    gold = schema.codes(rows.column("image_id"), annotated_images.column("image_id").unique()) >= 0
    ruled = _by_rules(rows, config)
    hit = np.flatnonzero(ruled != _NONE)
    fixed = dict(zip(places.group_of[hit].tolist(), ruled[hit].tolist(), strict=True))
    kept = _kept(places.ids, duplicates)
    # Only labelled images get a split, and each that of the image that is kept for it: no others need be drawn.
    needed = np.unique(np.append(np.flatnonzero(gold), kept[gold]))
    if config.stratify:
        drawn = _dealt(places, ground_truth, gold, fixed, config)
    else:
        drawn = _draw(places.group_of[needed], places.names, _strata(places.group_of, places, ground_truth), config)
    drawn |= fixed
    own = ruled.copy()
    open_ = needed[own[needed] == _NONE]
    own[open_] = [drawn[group] for group in places.group_of[open_].tolist()]
    final = np.where(gold, own[kept], UNLABELLED)
    meant = np.where(gold, own, UNLABELLED)
    alone = _alone(places, np.flatnonzero(gold & (ruled == _NONE)), fixed, ground_truth, config)
    meant[list(alone)] = list(alone.values())
    moved = meant != final
    words = pa.array([*DRAWN, "unlabelled"])
    why = pa.array(np.where(final != own, "duplicate", "location").astype(str), pa.string(), mask=~moved)
    return schema.table("splits").from_columns(
        {
            "image_id": rows.column("image_id"),
            "batch": rows.column("batch"),
            "split": words.take(pa.array(final)),
            "location": rows.column("location"),
            "gold": pa.array(gold),
            "moved_from": words.take(pa.array(meant, mask=~moved)),
            "moved_by": why,
        }
    )


@dataclass(frozen=True)
class _Places:
    """Where n images were taken, and which places near-duplicates link.

    Attributes:
        ids: (n,) image_ids. names: the places, sorted. of_image: (n,) number of each image's place.
        group: number of the place with the smallest name among those that a place is linked to.
    """

    ids: pa.Array
    names: pa.Array
    of_image: Ints
    group: Ints

    @classmethod
    def of(cls, ids: pa.ChunkedArray, locations: pa.ChunkedArray, duplicates: pa.Table) -> _Places:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        whole = ids.combine_chunks()
        names = locations.unique()
        names = names.take(pc.sort_indices(names))
        of_image = schema.codes(locations, names)
        ends = [schema.codes(duplicates.column(c), whole) for c in ("image_id", "duplicate_of")]
        known = (ends[0] >= 0) & (ends[1] >= 0)
        a, b = (of_image[end[known]] for end in ends)
        graph = coo_array((np.ones(len(a)), (a, b)), shape=(len(names), len(names)))
        label = connected_components(graph, directed=False)[1] if len(names) else np.zeros(0, np.int64)
        _, first = np.unique(label, return_index=True)  # names are sorted, so the first is the smallest
        return cls(whole, names, of_image, first[label])

    @property
    def group_of(self) -> Ints:
        """(n,) the group of each image's place."""
        return np.asarray(self.group[self.of_image])


def _kept(ids: pa.Array, duplicates: pa.Table) -> Ints:
    """(n,) place of the image that is kept for each, itself where there is none."""
    kept = np.arange(len(ids))
    one, other = (schema.codes(duplicates.column(c), ids) for c in ("image_id", "duplicate_of"))
    there = (one >= 0) & (other >= 0)
    kept[one[there]] = other[there]
    return kept


def _alone(
    places: _Places, images: Ints, fixed: dict[int, int], ground_truth: pa.Table, config: SplitConfig
) -> dict[int, int]:
    """Image -> the split that its location would have been drawn for by itself, where it goes with another or a rule.

    Args:
        images: labelled ones that no rule takes.
    """
    several = np.bincount(places.group, minlength=len(places.names)) > 1
    bound = (several | np.isin(np.arange(len(several)), list(fixed)))[places.group]
    mine = images[bound[places.of_image[images]]]
    if config.stratify or not len(mine):
        return {}
    strata = _strata(places.of_image, places, ground_truth)
    drawn = _draw(places.of_image[mine], places.names, strata, config)
    return {image: drawn[place] for image, place in zip(mine.tolist(), places.of_image[mine].tolist(), strict=True)}


def leaks(splits: pa.Table, duplicates: pa.Table, straddle: bool = False) -> list[str]:
    """Locations and clusters of duplicates with images in two of train, val and test, in words.

    Args:
        straddle: whether locations may.
    """
    used = schema.where_in(splits, "split", DRAWN)
    ids, names, places = (used.column(c).to_pylist() for c in ("image_id", "split", "location"))
    split_of = dict(zip(ids, names, strict=True))
    members: defaultdict[str, set[str]] = defaultdict(set)
    for row in duplicates.select(["image_id", "duplicate_of", "cluster"]).to_pylist():
        members[row["cluster"]] |= {row["image_id"], row["duplicate_of"]}
    clusters = ((c, split_of[i]) for c, images in members.items() for i in images if i in split_of)
    divided = [] if straddle else _straddling("location", zip(places, names, strict=True))
    return divided + _straddling("duplicate cluster", clusters)


def places_of(splits: pa.Table, duplicates: pa.Table) -> dict[str, str]:
    """What each image shows: its location, and those that near-duplicates link to it under one name."""
    places = _Places.of(splits.column("image_id"), splits.column("location"), duplicates)
    return dict(zip(places.ids.to_pylist(), places.names.take(pa.array(places.group_of)).to_pylist(), strict=True))


def _straddling(kind: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    found = defaultdict(set)
    for name, split in pairs:
        found[name].add(split)
    return [
        f"{kind} {name!r} is in {' and '.join(s for s in DRAWN if s in found[name])}"
        for name in sorted(found)
        if len(found[name]) > 1
    ]


def _first_arrivals(images: pa.Table) -> pa.Table:
    order = [("image_id", "ascending"), ("batch", "ascending"), ("file_name", "ascending")]
    ordered = images.take(pc.sort_indices(images, order)).combine_chunks()  # type: ignore[arg-type]
    names = ordered.column("image_id").combine_chunks()
    again = pc.equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)
    return ordered.filter(pa.array(np.append(np.ones(min(1, len(names)), bool), ~again)))


def _by_rules(rows: pa.Table, config: SplitConfig) -> Ints:
    """(n,) the split of each image, a place in DRAWN, by the first rule that matches; _NONE where none does."""
    split = np.full(rows.num_rows, _NONE)
    for i, rule in enumerate(config.assign):
        hits = matches(rows, rule.where, f"curation.splits.assign[{i}].where")
        split[hits & (split == _NONE)] = DRAWN.index(rule.split)
    return split


def _strata(of_image: Ints, places: _Places, ground_truth: pa.Table) -> list[list[int]]:
    """For each class the groups whose labels are all of that class, sorted.

    Args:
        of_image: (n,) the group of each image.
    """
    image = schema.codes(ground_truth.column("image_id"), places.ids)
    classes = ground_truth.column("class_name").combine_chunks().dictionary_encode().indices.to_numpy()
    seen = np.unique(np.stack([of_image[image], classes], axis=1)[image >= 0], axis=0)
    groups, counts = np.unique(seen[:, 0], return_counts=True)
    pure = seen[np.isin(seen[:, 0], groups[counts == 1])]
    return [pure[pure[:, 1] == kind, 0].tolist() for kind in np.unique(pure[:, 1])]


def _draw(groups: Ints, names: pa.Array, strata: list[list[int]], config: SplitConfig) -> dict[int, int]:
    """The split of each group, by its name's hash; then one of each class in test and val."""
    wanted = np.unique(np.append(groups, [group for members in strata for group in members])).astype(np.int64)
    words = names.take(pa.array(wanted)).to_pylist()
    draw = {group: _uniform(config.seed, word) for group, word in zip(wanted.tolist(), words, strict=True)}
    split = {group: DRAWN.index(_by_share(u, config)) for group, u in draw.items()}
    for members in strata:
        if len(members) < 3:
            continue
        by_hash = iter(sorted(members, key=lambda group: draw[group]))
        for name, share in (("test", config.test), ("val", config.val)):
            if share > 0 and all(split[group] != DRAWN.index(name) for group in members):
                split[next(by_hash)] = DRAWN.index(name)
            else:
                next(by_hash)
    return split


def _dealt(
    places: _Places, ground_truth: pa.Table, gold: NDArray[np.bool_], fixed: dict[int, int], config: SplitConfig
) -> dict[int, int]:
    """The split of each group so that labelled images, and labels of each class, are balanced."""
    names = dict(enumerate(places.names.to_pylist()))
    groups = np.unique(places.group)
    contents: dict[str, Counter[str]] = {names[group]: Counter() for group in groups.tolist()}
    for group in places.group_of[gold].tolist():
        contents[names[group]][""] += 1
    image = schema.codes(ground_truth.column("image_id"), places.ids)
    for i, kind in zip(image.tolist(), ground_truth.column("class_name").to_pylist(), strict=True):
        if i >= 0 and gold[i]:
            contents[names[places.group[places.of_image[i]]]][kind] += 1
    found = balanced(contents, {names[group]: DRAWN[split] for group, split in fixed.items()}, config)
    return {group: DRAWN.index(found[names[group]]) for group in groups.tolist()}


def balanced(contents: dict[str, Counter[str]], fixed: dict[str, str], config: SplitConfig) -> dict[str, str]:
    """The split of each group such that every split gets its share of each kind of content.

    Least squares: with every kind's total scaled to 1, the sum over splits and kinds of (what it has - its
    share)**2 / share. The most uneven groups are dealt out first, as scikit-learn's StratifiedGroupKFold does, each to
    where it lowers the sum most; then groups move, or two swap places, as long as that lowers it further.

    Args:
        contents: for each group, how much it has of each kind. fixed: groups whose split is decided.
    """
    shares = {"test": config.test, "val": config.val, "train": 1 - config.test - config.val}
    names = [name for name, share in shares.items() if share > 0]
    kinds = sorted({kind for counts in contents.values() for kind in counts})
    order = sorted(contents, key=lambda group: _uniform(config.seed, group))
    amount = np.array([[contents[group][kind] for kind in kinds] for group in order], np.float64)
    amount = amount.reshape(len(order), len(kinds))
    amount /= np.maximum(amount.sum(axis=0), 1)
    target = np.array([shares[name] for name in names])
    place = np.full(len(order), -1)
    for i, group in enumerate(order):
        if fixed.get(group) in names:
            place[i] = names.index(fixed[group])
    free = np.array([i for i, group in enumerate(order) if group not in fixed], np.int64)
    have = np.stack([amount[place == s].sum(axis=0) for s in range(len(names))])
    for i in free[np.argsort(-amount[free].std(axis=1), kind="stable")].tolist():
        place[i] = int(np.argmin(_costs(have, amount[i], target)))
        have[place[i]] += amount[i]
    _improve(place, free, amount, have, target)
    return {group: names[int(place[i])] if place[i] >= 0 else "train" for i, group in enumerate(order)}


def _costs(have: Amounts, more: Amounts, target: Amounts) -> Amounts:
    """(s,) by how much the sum grows if `more` comes into each split."""
    return np.asarray((more * (2 * (have - target[:, None]) + more)).sum(axis=1) / target)


def _improve(
    place: NDArray[np.int64], free: NDArray[np.int64], amount: Amounts, have: Amounts, target: Amounts
) -> None:
    """Move single groups, and swap pairs of them, while that lowers the sum."""
    for _ in range(_ROUNDS):
        before = place.copy()
        for i in free.tolist():
            now = place[i]
            have[now] -= amount[i]
            gain = _costs(have, amount[i], target)
            best = int(np.argmin(gain))
            place[i] = best if gain[best] < gain[now] - _TINY else now
            have[place[i]] += amount[i]
        for i in free.tolist() if len(free) <= _FEW else ():
            others = free[place[free] != place[i]]
            if not len(others):
                continue
            step = amount[others] - amount[i]
            here, there = have[place[i]] - target[place[i]], have[place[others]] - target[place[others], None]
            growth = (step * (2 * here + step)).sum(axis=1) / target[place[i]]
            growth += (step * (step - 2 * there)).sum(axis=1) / target[place[others]]
            best = int(np.argmin(growth))
            if growth[best] < -_TINY:
                other = int(others[best])
                have[place[i]] += step[best]
                have[place[other]] -= step[best]
                place[i], place[other] = place[other], place[i]
        if (place == before).all():
            return


def _uniform(seed: int, group: str) -> float:
    return int(fingerprint("split", seed, group)[:13], 16) / 16**13


def _by_share(u: float, config: SplitConfig) -> str:
    if u < config.test:
        return "test"
    return "val" if u < config.test + config.val else "train"
