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

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import SplitConfig
from pipeline.ids import fingerprint
from pipeline.predicates import matches

DRAWN = ("train", "val", "test")
_ROUNDS = 20
_TINY = 1e-12
_FEW = 3000  # groups; of more, single moves balance well enough

Amounts = NDArray[np.float64]


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
    ids = rows.column("image_id").to_pylist()
    locations = rows.column("location").to_pylist()
    ruled = _by_rules(rows, config)
    groups = _linked_locations(ids, locations, duplicates)
    fixed = {groups[place]: split for place, split in zip(locations, ruled, strict=True) if split}
    if config.stratify:
        gold_ids = set(annotated_images.column("image_id").to_pylist())
        drawn = balanced(_contents(ids, locations, groups, ground_truth, gold_ids), fixed, config)
    else:
        drawn = _draw({groups[place] for place in locations}, _strata(ids, locations, groups, ground_truth), config)
    drawn |= fixed
    split_of = {image: split or drawn[groups[place]] for image, place, split in zip(ids, locations, ruled, strict=True)}
    kept = dict(zip(*(duplicates.column(c).to_pylist() for c in ("image_id", "duplicate_of")), strict=True))
    gold = set(annotated_images.column("image_id").to_pylist())
    final = [split_of.get(kept.get(i, i), split_of[i]) if i in gold else "unlabelled" for i in ids]
    alone = _alone(ids, locations, groups, fixed, ground_truth, config)
    meant = [rule or alone.get(place, split_of[i]) for i, place, rule in zip(ids, locations, ruled, strict=True)]
    moved = [i in gold and a != b for i, a, b in zip(ids, meant, final, strict=True)]
    why = ["duplicate" if split != split_of[i] else "location" for i, split in zip(ids, final, strict=True)]
    return schema.table("splits").from_columns(
        {
            "image_id": rows.column("image_id"),
            "batch": rows.column("batch"),
            "split": pa.array(final, pa.string()),
            "location": rows.column("location"),
            "gold": pa.array([i in gold for i in ids], pa.bool_()),
            "moved_from": pa.array([split if m else None for split, m in zip(meant, moved, strict=True)], pa.string()),
            "moved_by": pa.array([word if m else None for word, m in zip(why, moved, strict=True)], pa.string()),
        }
    )


def _alone(
    ids: list[str],
    locations: list[str],
    groups: dict[str, str],
    fixed: dict[str, str],
    ground_truth: pa.Table,
    config: SplitConfig,
) -> dict[str, str]:
    """The split that each location which goes with another, or with a rule, would have been drawn for by itself."""
    several = Counter(groups.values())
    bound = {place for place, group in groups.items() if several[group] > 1 or group in fixed}
    if config.stratify or not bound:
        return {}
    drawn = _draw(set(groups), _strata(ids, locations, {place: place for place in groups}, ground_truth), config)
    return {place: drawn[place] for place in bound}


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
    ids, locations = (splits.column(c).to_pylist() for c in ("image_id", "location"))
    linked = _linked_locations(ids, locations, duplicates)
    return {image: linked[place] for image, place in zip(ids, locations, strict=True)}


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
    ordered = images.sort_by([("image_id", "ascending"), ("batch", "ascending"), ("file_name", "ascending")])
    names = np.asarray(ordered.column("image_id").to_pylist(), str)
    return ordered.take(pa.array(np.unique(names, return_index=True)[1], pa.int64())).combine_chunks()


def _by_rules(rows: pa.Table, config: SplitConfig) -> list[str]:
    """The split of each image by the first rule that matches; '' where none does."""
    split = np.full(rows.num_rows, "", object)
    for i, rule in enumerate(config.assign):
        hits = matches(rows, rule.where, f"curation.splits.assign[{i}].where")
        split[hits & (split == "")] = rule.split
    return [str(s) for s in split]


def _linked_locations(ids: list[str], locations: list[str], duplicates: pa.Table) -> dict[str, str]:
    """For each location, the smallest name among those that near-duplicates link it to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, position = np.unique(np.asarray(locations, str), return_inverse=True)
    at = dict(zip(ids, position.tolist(), strict=True))
    pairs = zip(*(duplicates.column(c).to_pylist() for c in ("image_id", "duplicate_of")), strict=True)
    links = np.array([(at[a], at[b]) for a, b in pairs if a in at and b in at], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(names), len(names)))
    if not len(names):
        return {}
    label = connected_components(graph, directed=False)[1]
    _, first = np.unique(label, return_index=True)  # names are sorted, so the first is the smallest
    return {str(name): str(names[first[group]]) for name, group in zip(names, label, strict=True)}


def _strata(
    ids: list[str], locations: list[str], groups: dict[str, str], ground_truth: pa.Table
) -> dict[str, list[str]]:
    """Class -> the groups of locations whose labels are all of that class."""
    place_of = dict(zip(ids, locations, strict=True))
    seen = defaultdict(set)
    for image, name in zip(*(ground_truth.column(c).to_pylist() for c in ("image_id", "class_name")), strict=True):
        if image in place_of:
            seen[groups[place_of[image]]].add(name)
    strata = defaultdict(list)
    for group, classes in sorted(seen.items()):
        if len(classes) == 1:
            strata[next(iter(classes))].append(group)
    return dict(strata)


def _draw(groups: set[str], strata: dict[str, list[str]], config: SplitConfig) -> dict[str, str]:
    """The split of each group, by its hash; then one of each class in test and val."""
    draw = {group: _uniform(config.seed, group) for group in groups}
    split = {group: _by_share(u, config) for group, u in draw.items()}
    for members in strata.values():
        if len(members) < 3:
            continue
        by_hash = iter(sorted(members, key=lambda group: draw[group]))
        for name, share in (("test", config.test), ("val", config.val)):
            if share > 0 and all(split[group] != name for group in members):
                split[next(by_hash)] = name
            else:
                next(by_hash)
    return split


def _contents(
    ids: list[str], locations: list[str], groups: dict[str, str], ground_truth: pa.Table, gold: set[str]
) -> dict[str, Counter[str]]:
    """For each group, how many labelled images ('') and labels of each class it has."""
    contents: dict[str, Counter[str]] = {groups[place]: Counter() for place in locations}
    group_of = {image: groups[place] for image, place in zip(ids, locations, strict=True) if image in gold}
    for group in group_of.values():
        contents[group][""] += 1
    for image, name in zip(*(ground_truth.column(c).to_pylist() for c in ("image_id", "class_name")), strict=True):
        if image in group_of:
            contents[group_of[image]][name] += 1
    return contents


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
