"""Regions of the space of embeddings in which a model errs more often than elsewhere.

Centres come from the errors themselves, never from the bulk of the images: K-means of the erring images,
and those of them whose nearest neighbours err most. Around a centre, images are taken in order of distance,
and the region is the prefix of the highest evidence: the log-likelihood ratio of Kulldorff's spatial scan
statistic (1997), whose two sides are "errors are as frequent inside as outside" and "more frequent inside".
The ellipsoid is then fitted to the errors inside, and again, while that raises the evidence. So regions
have the size that the errors give them, however rare, and need no number of clusters.

A region whose errors are two groups by BIC (as in X-means, Pelleg & Moore 2000) is divided between them;
one whose errors are those of one class is narrowed to that class. Of regions that overlap much, the one
with more evidence is kept. Those that are hardly chance are then left out, and the rest is searched again until there
are no more, since a strong region hides weaker ones (Zhang, Assuncao & Kulldorff 2010, Spatial scan statistics
adjusted for multiple clusters).

Compare Domino (Eyuboglu et al. 2022), a mixture model of embeddings, classes and answers, whose components
are ranked by error; it finds what is common before it finds what is wrong. `benchmarks/slice_discovery.py`
compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.ids import seed

_DIMENSIONS = 32  # leading principal components looked at
_CENTRES = 20  # of each of the two kinds
_LOOKED_AT = 512  # erring images whose neighbours are looked at
_NEIGHBOURS = (20, 40, 80, 160)
_ROUNDS = 3
_SURE = float(np.log(20))  # evidence, beyond that of as many centres and sizes as images, of what is hardly chance
_SHRINK = 32.0  # errors that the usual shape counts as, against those of a region itself
_LEAST_HALF = 8  # errors in either half of a divided region
_DIVIDED = 20  # errors below which a region is not divided
_LARGEST = 0.5  # share of the images
_ALIKE = 0.5  # Jaccard overlap above which two regions are one
_CLASS_GAIN = 3.0  # evidence that a class must add
_BLOCK = 1 << 24  # distances held at a time

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ellipsoid:
    """centre, spread: (r,) mean and variances."""

    centre: Floats
    spread: Floats

    def distance(self, points: Floats, squares: Floats) -> Floats:
        """(n,) squared Mahalanobis distance of `points`, whose elementwise squares are `squares`."""
        offset = float((self.centre**2 / self.spread).sum())
        return np.maximum(squares @ (1 / self.spread) - 2 * points @ (self.centre / self.spread) + offset, 0)

    @property
    def volume(self) -> float:
        """Logarithm of the product of variances."""
        return float(np.log(self.spread).sum())


@dataclass(frozen=True)
class Region:
    """Points within `limit` of an ellipsoid, and of class `kind` if that is given.

    Attributes:
        rival: the other half, where a region was divided: points more likely there are not in this one.
        evidence: log-likelihood ratio of its errors, among the points that it was found in.
        members: (m,) positions among the points searched.
    """

    shape: Ellipsoid
    limit: float
    evidence: float
    members: Ints
    rival: Ellipsoid | None = None
    kind: int | None = None


@dataclass(frozen=True)
class Regions:
    """Regions, best first, of a projected space.

    Attributes:
        mean, axes: (d,) and (d, r) of the projection.
    """

    mean: Floats
    axes: Floats
    found: list[Region]

    def distances(self, vectors: NDArray[np.floating], kinds: NDArray[np.integer] | None = None) -> Floats:
        """(n, regions) squared distance of each image to each region's centre; infinite outside of it.

        Args:
            vectors: (n, d). kinds: (n,) classes, as in `find_regions`.
        """
        points = _projected(vectors, self.mean, self.axes)
        squares = points**2
        columns = []
        for region in self.found:
            apart = _distance(region.shape, region.rival, points, squares)
            outside = apart > region.limit
            if region.kind is not None and kinds is not None:
                outside |= kinds != region.kind
            columns.append(np.where(outside, np.inf, apart))
        return np.stack(columns, axis=1) if columns else np.zeros((len(points), 0))


def find_regions(
    vectors: NDArray[np.floating],
    errors: NDArray[np.floating],
    kinds: NDArray[np.integer] | None = None,
    *,
    most: int = 10,
    least: int = 10,
) -> Regions:
    """At most `most` regions of `vectors` in which errors are more frequent than outside, best first.

    Args:
        vectors: (n, d). errors: (n,) in [0, 1].
        kinds: (n,) class of each image, or -1; None: regions are not narrowed to classes.
        least: images a region has at least.
    """
    count, width = np.shape(vectors)
    wrong = np.asarray(errors, np.float64)
    components = max(1, min(_DIMENSIONS, width, count // 10))
    mean, axes = _principal(vectors, components)
    points = _projected(vectors, mean, axes)
    found: list[Region] = []
    left = np.arange(count)
    while len(found) < most and len(left) >= 2 * least and 0 < wrong[left].mean() < 1:
        search = _Search(points[left], wrong[left], None if kinds is None else kinds[left], least)
        new = [replace(region, members=left[region.members]) for region in search.run(most)]
        sure = [region for region in new if region.evidence > 2 * np.log(count) + _SURE]
        found += [region for region in sure or new if wrong[region.members].mean() > wrong.mean()]
        if not sure:
            break
        left = np.setdiff1d(left, np.concatenate([region.members for region in sure]))
    return Regions(mean, axes, _distinct(found, count, most))


def _principal(vectors: NDArray[np.floating], components: int) -> tuple[Floats, Floats]:
    """Mean and leading eigenvectors of the covariance, of known sign."""
    points = np.asarray(vectors)
    if not len(points):
        return np.zeros(points.shape[1]), np.eye(points.shape[1], components)
    mean = points.mean(axis=0, dtype=np.float64)
    centred = points - mean.astype(points.dtype)
    axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, ::-1][:, :components]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return mean, axes * signs


def _projected(vectors: NDArray[np.floating], mean: Floats, axes: Floats) -> Floats:
    points = np.asarray(vectors)
    return np.asarray(points @ axes.astype(points.dtype) - mean @ axes, np.float64)


def _distance(shape: Ellipsoid, rival: Ellipsoid | None, points: Floats, squares: Floats) -> Floats:
    """Distances, infinite for points that are more likely under the rival."""
    apart = shape.distance(points, squares)
    if rival is not None:
        apart[apart + shape.volume > rival.distance(points, squares) + rival.volume] = np.inf
    return apart


def evidence(errors: Floats, images: Floats, all_errors: float, all_images: float) -> Floats:
    """Log-likelihood ratio that errors are more frequent in a region than outside; -inf if they are not.

    Args:
        errors, images: of the regions. all_errors, all_images: in total.
    """
    rest_errors, rest = all_errors - errors, np.maximum(all_images - images, 1e-12)
    inside, outside = errors / images, rest_errors / rest
    value = _information(errors, images) + _information(rest_errors, rest)
    value -= _information(np.array(all_errors), np.array(all_images))
    return np.where(inside > outside, value, -np.inf)


def _information(errors: Floats, images: Floats) -> Floats:
    """Log-likelihood of errors at their own rate."""
    right = np.maximum(images - errors, 0)
    tiny = np.finfo(float).tiny
    share = np.maximum(errors, 0) / images
    return np.asarray(errors * np.log(share + tiny) + right * np.log(np.maximum(1 - share, 0) + tiny))


class _Search:
    def __init__(self, points: Floats, errors: Floats, kinds: NDArray[np.integer] | None, least: int) -> None:
        self.points, self.squares = points, points**2
        self.errors, self.kinds, self.least = errors, kinds, least
        self.excess = np.maximum(errors - errors.mean(), 0)  # of errors of any size, what is unusual
        self.erring = np.flatnonzero(self.excess)
        self.total = float(errors.sum())
        self.largest = max(least, int(_LARGEST * len(points)))

    def run(self, most: int) -> list[Region]:
        groups = [*self._dense(), *self._clusters()]
        self.usual = self._usual_spread(groups)
        found: list[Region] = []
        for group in groups:
            region = self._grown(group)
            if region is not None:
                found.append(region)
        kept = _distinct(found, len(self.points), most)
        kept = _distinct([part for region in kept for part in self._divided(region)], len(self.points), most)
        return [self._narrowed(region) for region in kept]

    def _clusters(self) -> list[Ints]:
        """Erring images, by clusters."""
        from sklearn.cluster import KMeans

        points = self.points[self.erring]
        count = min(_CENTRES, len(self.erring) // 5, _different(points))
        if count < 2:
            return [self.erring]
        model = KMeans(count, n_init=1, random_state=seed("regions") % 2**31)
        label = model.fit(points, sample_weight=self.excess[self.erring]).labels_
        return [self.erring[label == k] for k in range(count)]

    def _dense(self) -> list[Ints]:
        """Neighbourhoods of erring images that hold most evidence and little of each other."""
        centres = self.erring
        if len(centres) > _LOOKED_AT:
            centres = np.sort(np.random.default_rng(seed("dense")).choice(centres, _LOOKED_AT, replace=False))
        sizes = np.array([s for s in _NEIGHBOURS if self.least <= s <= self.largest])
        if not len(sizes):
            return []
        near = self._neighbours(centres, int(sizes[-1]))
        counted = np.cumsum(self.errors[near], axis=1)[:, sizes - 1]
        value = evidence(counted, np.broadcast_to(sizes, counted.shape), self.total, len(self.points))
        size, best = sizes[value.argmax(axis=1)], value.max(axis=1)
        taken = np.zeros(len(self.points), bool)
        groups: list[Ints] = []
        for k in np.argsort(-best, kind="stable"):
            group = near[k, : size[k]]
            if len(groups) == _CENTRES or not np.isfinite(best[k]):
                break
            if taken[group].mean() < _ALIKE:
                taken[group] = True
                groups.append(group)
        return groups

    def _neighbours(self, centres: Ints, count: int) -> Ints:
        """(m, count) nearest images of each, nearest first; in blocks, so that memory does not grow with both."""
        points = self.points.astype(np.float32)
        squares = (points**2).sum(axis=1)
        blocks = []
        for block in np.array_split(centres, 1 + len(centres) * len(points) // _BLOCK):
            apart = squares - 2 * points[block] @ points.T
            near = np.argpartition(apart, count - 1, axis=1)[:, :count]
            order = np.argsort(np.take_along_axis(apart, near, axis=1), axis=1, kind="stable")
            blocks.append(np.take_along_axis(near, order, axis=1))
        return np.concatenate(blocks)

    def _usual_spread(self, groups: list[Ints]) -> Floats:
        """Median variance of errors within groups: the shape of regions of few errors."""
        errors = [g[self.excess[g] > 0] for g in groups]
        spreads = [self.points[g].var(axis=0) for g in errors if len(g) > 2]
        usual = np.median(spreads, axis=0) if spreads else self.points.var(axis=0)
        return np.asarray(usual + 1e-3 * self.points.var() + 1e-12, np.float64)

    def _shape(self, members: Ints) -> Ellipsoid | None:
        """The ellipsoid of the errors of some images; none without at least three."""
        chosen = members[self.excess[members] > 0]
        if len(chosen) < 3:
            return None
        weight = self.excess[chosen] / self.excess[chosen].sum()
        centre = weight @ self.points[chosen]
        spread = np.maximum(weight @ self.squares[chosen] - centre**2, 0)
        own = 1 / (1 + _SHRINK * float(weight @ weight))
        return Ellipsoid(centre, own * spread + (1 - own) * self.usual)

    def _cut(self, shape: Ellipsoid, rival: Ellipsoid | None = None) -> Region | None:
        """The prefix of images, in order of distance, that holds most evidence."""
        apart = _distance(shape, rival, self.points, self.squares)
        near = np.argpartition(apart, self.largest)[: self.largest + 1]
        near = near[np.argsort(apart[near], kind="stable")]
        # Images equally far are in or out together, those beyond the largest size too.
        near = near[: np.searchsorted(apart[near], apart[near[-1]])]
        errors = np.cumsum(self.errors[near])
        # Where evidence is highest, the last image errs and the next is further away.
        ends = np.unique(np.searchsorted(apart[near], apart[near[self.excess[near] > 0]], side="right")) - 1
        ends = ends[ends >= self.least - 1]
        if not len(ends):
            return None
        value = evidence(errors[ends], ends + 1.0, self.total, len(self.points))
        best = int(value.argmax())
        if not np.isfinite(value[best]):
            return None
        end = ends[best]
        return Region(shape, float(apart[near[end]]), float(value[best]), near[: end + 1], rival)

    def _grown(self, members: Ints) -> Region | None:
        """A region around some images, fitted again while that raises its evidence."""
        best: Region | None = None
        for _ in range(_ROUNDS):
            shape = self._shape(members)
            region = None if shape is None else self._cut(shape)
            if region is None or (best is not None and region.evidence <= best.evidence):
                break
            best, members = region, region.members
        return best

    def _divided(self, region: Region, depth: int = 0) -> list[Region]:
        """The region, or its two halves if its errors are two groups."""
        from sklearn.cluster import KMeans

        errors = region.members[self.excess[region.members] > 0]
        if len(errors) < _DIVIDED or depth == _ROUNDS:
            return [region]
        points = self.points[errors]
        if _different(points) < 2:
            return [region]
        half = KMeans(2, n_init=2, random_state=seed("halves") % 2**31).fit_predict(points)
        shapes = [self._shape(errors[half == k]) for k in (0, 1)]
        if shapes[0] is None or shapes[1] is None or not _two_groups(points, half):
            return [region]
        parts = [self._cut(shapes[0], shapes[1]), self._cut(shapes[1], shapes[0])]
        return [r for part in parts if part is not None for r in self._divided(part, depth + 1)]

    def _narrowed(self, region: Region) -> Region:
        """The region's images of the class that holds most evidence, if that is more than all of them do."""
        if self.kinds is None:
            return region
        best = replace(region, evidence=region.evidence + _CLASS_GAIN)
        for kind in np.unique(self.kinds[region.members]):
            members = region.members[self.kinds[region.members] == kind]
            if kind < 0 or not self.least <= len(members) < len(region.members):
                continue
            counted = np.array([self.errors[members].sum()]), np.array([float(len(members))])
            value = float(evidence(*counted, self.total, len(self.points))[0])
            if value > best.evidence:
                best = replace(region, evidence=value, members=members, kind=int(kind))
        return best if best.kind is not None else region


def _distinct(regions: list[Region], count: int, most: int) -> list[Region]:
    """The best regions of `count` points, best first, without those that overlap much with a better one."""
    kept: list[tuple[Region, Flags]] = []
    for region in sorted(regions, key=lambda r: -r.evidence):
        inside = np.zeros(count, bool)
        inside[region.members] = True
        if all((inside & other).sum() <= _ALIKE * (inside | other).sum() for _, other in kept):
            kept.append((region, inside))
        if len(kept) == most:
            break
    return [region for region, _ in kept]


def _different(points: Floats) -> int:
    """How many points differ in their leading component."""
    return len(np.unique(points[:, 0]))


def _two_groups(points: Floats, half: NDArray[np.integer]) -> bool:
    """Whether two normal distributions with diagonal covariance describe points better than one, by BIC."""
    count, width = points.shape
    floor = 1e-6 * points.var(axis=0) + 1e-12

    def fit(some: Floats) -> float:
        return -0.5 * len(some) * float(np.log(some.var(axis=0) + floor).sum())

    parts = [points[half == k] for k in (0, 1)]
    if min(len(p) for p in parts) < _LEAST_HALF:
        return False
    mixing = sum(len(p) * np.log(len(p) / count) for p in parts)
    gain = sum(fit(p) for p in parts) + mixing - fit(points)
    return bool(gain > 0.5 * (2 * width + 1) * np.log(count))
