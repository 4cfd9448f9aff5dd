"""Images to boxes: every labeller of the project looks at every image, decoded once.

Labellers that answer prompts one by one give proposals. These are kept, and only what has not been
asked yet is asked again; thresholds, negative prompts and suppression work on what is kept. Of the others
it is counted which images they have looked at, and only new ones are shown to them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import boxes as box_ops
from pipeline import looked, schema
from pipeline.compute import AheadWorker, Compute, map_batches
from pipeline.config import Project, ProjectConfig
from pipeline.images import Pixels, Reader, UnusableImage
from pipeline.models import proposals
from pipeline.models.dino_questions import Prompted, Questions
from pipeline.models.profiles import build_labeller, labeller_producer, labeller_questions
from pipeline.models.roles import Detections, Detector
from pipeline.store import Staging

_TOUCHES = 1.0  # pixels from an edge
_KEYS = ["image_id", "batch", "width", "height", "tile_x", "tile_y", "photo_width", "photo_height"]
_ASKED = "asked"  # per image and labeller: which of its captions to ask, none of a plain one; null: it is not asked
_TOOK = "took"
_MARKS = {"detections": "annotation_id", "proposals": "caption", "unanswered": "reason"}  # what only they have
_MIXED = pa.schema(
    {field.name: field.type for name in _MARKS for field in schema.table(name).schema}
    | {looked.MARK: pa.bool_(), _TOOK: pa.float64()}
)
_Part = tuple[dict[str, Any], str, Detections]
_Read = tuple[dict[str, Any], Pixels]


@dataclass(frozen=True)
class Found:
    """All that labellers said of some images.

    Attributes:
        detections, detection_counts, proposals, unanswered: rows of these tables.
        seconds: that each labeller took, by producer, in all workers together.
        images: at which somebody had to look.
    """

    detections: pa.Table
    detection_counts: pa.Table
    proposals: pa.Table
    unanswered: pa.Table = field(default_factory=schema.table("unanswered").empty)
    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0


class DetectWorker(AheadWorker):
    """Rows of `images` to what each labeller says of them.

    The rows that come out are of several tables in one (`_MIXED`): detections of plain labellers and the images
    that these looked at, proposals of prompted ones, images that could not be answered, and the seconds each
    labeller took, so that these are known of resumed work, too. A column `asked`, if there is one, holds for each
    labeller what it is asked (`_ASKED`); else all are asked for all.
    """

    def __init__(self, config: ProjectConfig, folder: str) -> None:
        self._labellers = _labellers(config, Path(folder))
        self._reader = Reader(config.source.max_pixels)

    def read(self, rows: pa.Table) -> Iterator[Pixels | UnusableImage]:
        """Pixels of each image."""
        return self._reader.whole(rows)

    def answer(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> pa.Table:
        """What the labellers say of the images that can be read."""
        seen, parts = self._sorted(rows, read)
        for number, labeller in enumerate(self._labellers):
            start = time.perf_counter()
            mine = [(row, image) for row, image in seen if _is_asked(row, number)]
            parts += _proposed(labeller, mine, number) if isinstance(labeller, Prompted) else _detected(labeller, mine)
            parts.append(pa.table({"producer": [labeller.producer], _TOOK: [time.perf_counter() - start]}))
        return pa.concat_tables([_mixed(part) for part in parts])

    def _sorted(self, rows: pa.Table, read: Iterable[Pixels | UnusableImage]) -> tuple[list[_Read], list[pa.Table]]:
        """The images that can be read, with their rows, and rows of `unanswered` for the others."""
        seen, failed = [], []
        for row, image in zip(rows.to_pylist(), read, strict=True):
            if isinstance(image, UnusableImage):
                asked = [one for number, one in enumerate(self._labellers) if _is_asked(row, number)]
                failed += [_unanswered(row, labeller.producer, image.reason) for labeller in asked]
            else:
                seen.append((row, image))
        return seen, failed


def _is_asked(row: dict[str, Any], number: int) -> bool:
    """Whether the labeller of that number is to look at an image."""
    return _ASKED not in row or row[_ASKED][number] is not None


def _detected(labeller: Detector, read: Sequence[_Read]) -> list[pa.Table]:
    """Rows of detections of a plain labeller, and a mark for each image, for it may find nothing."""
    found = labeller.detect([image for _, image in read]) if read else []
    said = detection_rows([(row, labeller.producer, one) for (row, _), one in zip(read, found, strict=True)])
    names = {name: pa.array([row[name] for row, _ in read], pa.string()) for name in ("image_id", "batch")}
    return [said, looked.marks(pa.table(names), labeller.producer)]


def _proposed(labeller: Prompted, read: Sequence[_Read], number: int) -> list[pa.Table]:
    """Rows of proposals; where a batch fails, image by image, so that one costs only itself.

    Args:
        number: of the labeller.
    """
    every = range(len(labeller.questions.captions))
    asked = [row[_ASKED][number] if _ASKED in row else every for row, _ in read]
    try:
        found = labeller.propose([image for _, image in read], asked)
        return [proposals.rows_of(found, [row for row, _ in read], labeller.questions)]
    except (RuntimeError, ValueError, MemoryError) as error:
        if len(read) == 1:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            return [_unanswered(read[0][0], labeller.producer, reason)]
    return [part for one in read for part in _proposed(labeller, [one], number)]


def _unanswered(row: dict[str, Any], producer: str, reason: str) -> pa.Table:
    cells = {"image_id": row["image_id"], "batch": row["batch"], "producer": producer, "reason": reason}
    return schema.table("unanswered").from_rows([cells])


def _mixed(part: pa.Table) -> pa.Table:
    columns = [
        part[field.name].cast(field.type) if field.name in part.column_names else pa.nulls(part.num_rows, field.type)
        for field in _MIXED
    ]
    return pa.Table.from_arrays(columns, schema=_MIXED)


def part_of(said: pa.Table, name: str) -> pa.Table:
    """The rows of one table among those that a `DetectWorker` gives."""
    mine = said.filter(pc.is_valid(said[_MARKS[name]]))
    return schema.table(name).conform(mine.select([c.name for c in schema.table(name).columns]))


def detection_rows(parts: Sequence[_Part]) -> pa.Table:
    """Rows of `detections`: boxes clipped to their images, those without area left out.

    Args:
        parts: (row of `images`, producer, detections), in the order that is wanted.
    """
    counts = [len(found.classes) for _, _, found in parts]
    owner = np.repeat(np.arange(len(parts)), counts)
    size = np.array([(key["width"], key["height"]) for key, _, _ in parts], np.float32).reshape(-1, 2)[owner]
    corners = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes for _, _, found in parts)])
    corners = np.clip(corners.astype(np.float32), 0, np.concatenate([size, size], axis=1))
    scores = np.concatenate([np.zeros(0, np.float32), *(found.scores for _, _, found in parts)])
    classes = np.array([name for _, _, found in parts for name in found.classes], object)
    kept = box_ops.area(corners) > 0
    corners, mine = corners[kept], [parts[i] for i in owner[kept].tolist()]
    return schema.annotations(
        "detections",
        image_ids=[key["image_id"] for key, _, _ in mine],
        batch=[key["batch"] for key, _, _ in mine],
        producer=[producer for _, producer, _ in mine],
        classes=classes[kept].tolist(),
        boxes=corners,
        scores=scores[kept],
        truncated=_truncated(corners, [key for key, _, _ in mine]),
    )


def _truncated(corners: NDArray[np.floating], keys: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """Which boxes touch an edge of their tile that is not an edge of the photo."""
    columns = {name: np.array([key[name] for key in keys], np.float64) for name in _KEYS[2:]}
    left, top = columns["tile_x"] > 0, columns["tile_y"] > 0
    right = columns["tile_x"] + columns["width"] < columns["photo_width"]
    bottom = columns["tile_y"] + columns["height"] < columns["photo_height"]
    touching: NDArray[np.bool_] = (
        (left & (corners[:, 0] <= _TOUCHES))
        | (top & (corners[:, 1] <= _TOUCHES))
        | (right & (corners[:, 2] >= columns["width"] - _TOUCHES))
        | (bottom & (corners[:, 3] >= columns["height"] - _TOUCHES))
    )
    return touching


def detect(images: pa.Table, project: Project, compute: Compute, staging: Staging) -> pa.Table:
    """Rows of `detections` of all the project's labellers for rows of `images`, in their order.

    Raises:
        ConfigError: a user's labeller cannot be loaded.
        DataError: a user's labeller failed, or returned something that is not valid.
        WeightsError: the profile's checkpoints are not there.
    """
    return find(images, project, compute, staging).detections


def find(images: pa.Table, project: Project, compute: Compute, staging: Staging, known: Found | None = None) -> Found:
    """As `detect`, with all else that is known afterwards.

    Args:
        known: of an earlier time. What its proposals answer is not asked again, and a plain labeller does not look
            again at images that it is counted for, under the name that it has now.
    """
    known = known or Found(*(schema.table(name).empty() for name in ("detections", "detection_counts", "proposals")))
    labellers = project.config.labelling.labellers
    producers = [labeller_producer(labeller, project.folder, project.config) for labeller in labellers]
    prompted = prompted_by(project.config)
    seen = _seen(images, known, producers)
    wanted = _wanted(images, known, seen, producers, project.config)
    options = {"config": project.config, "folder": str(project.folder)}
    some = labellers and wanted.num_rows
    said = map_batches(DetectWorker, options, wanted, compute, staging) if some else _MIXED.empty_table()
    answers = pa.concat_tables([_still_asked(known.proposals, prompted), part_of(said, proposals.TABLE)])
    clock = said.filter(pc.is_valid(said[_TOOK])).group_by("producer").aggregate([(_TOOK, "sum")])
    kept = looked.rows_of(known.detections, seen)
    drawn = [kept, part_of(said, "detections"), *(settled(images, answers, q) for q in prompted)]
    found = _in_order(pa.concat_tables(drawn), images, producers)
    return Found(
        found,
        _counts(found, seen, said, images, producers),
        answers,
        part_of(said, "unanswered"),
        dict(zip(clock["producer"].to_pylist(), clock[f"{_TOOK}_sum"].to_pylist(), strict=True)),
        wanted.num_rows,
    )


def _seen(images: pa.Table, known: Found, producers: Sequence[str]) -> pa.Table:
    """The rows of `detection_counts` of an earlier time that still hold, of labellers and images that are there."""
    counts = schema.where_in(known.detection_counts, "producer", producers)
    return looked.standing(
        counts.filter(pc.is_in(counts["image_id"], images["image_id"].combine_chunks())), known.detections
    )


def _counts(found: pa.Table, seen: pa.Table, said: pa.Table, images: pa.Table, producers: Sequence[str]) -> pa.Table:
    """Rows of `detection_counts`: of the images that plain labellers had seen before or have seen now."""
    now = said.filter(pc.is_valid(said[looked.MARK])).select(looked.KEYS)
    pairs = pa.concat_tables([seen.select(looked.KEYS), now.cast(seen.select(looked.KEYS).schema)])
    return schema.table("detection_counts").conform(looked.counted(_in_order(pairs, images, producers), found))


def prompted_by(config: ProjectConfig) -> list[Questions]:
    """What labellers ask that answer prompts one by one, labeller by labeller."""
    return [questions for questions in _questions(config) if questions is not None]


def _questions(config: ProjectConfig) -> list[Questions | None]:
    """Of each labeller what it asks with prompts; None of a plain one."""
    return [labeller_questions(labeller, config) for labeller in config.labelling.labellers]


def _wanted(
    images: pa.Table, known: Found, seen: pa.Table, producers: Sequence[str], config: ProjectConfig
) -> pa.Table:
    """The images that somebody must look at, with what to ask of each."""
    names = images["image_id"].to_pylist()
    asked: list[list[list[int] | None]] = [[] for _ in names]
    others: set[tuple[str, str]] = set()
    no_caption: list[int] = []
    for producer, questions in zip(producers, _questions(config), strict=True):
        if questions is None:
            before = set(seen.filter(pc.equal(seen["producer"], producer))["image_id"].to_pylist())
            for name, captions in zip(names, asked, strict=True):
                captions.append(None if name in before else no_caption)
            continue
        mine = [(questions.model, caption.key) for caption in questions.captions]
        for captions, missing in zip(asked, proposals.unasked(known.proposals, names, questions), strict=True):
            captions.append([i for i in missing if mine[i] not in others] or None)  # one network answers for all
        others.update(mine)
    rows = images.append_column(_ASKED, pa.array(asked, pa.list_(pa.list_(pa.int32()))))
    return rows.filter(pa.array([any(c is not None for c in captions) for captions in asked], pa.bool_()))


def _still_asked(known: pa.Table, prompted: Sequence[Questions]) -> pa.Table:
    """The proposals of an earlier time that answer what is asked now."""
    mine = pa.array(np.zeros(known.num_rows, bool))
    for questions in prompted:
        mine = pc.or_(mine, proposals.answers(known, questions))
    return known.filter(mine)


def settled(images: pa.Table, rows: pa.Table, questions: Questions) -> pa.Table:
    """Rows of `detections` that stand among rows of `proposals`."""
    keys = images.select(_KEYS).to_pylist()
    found = proposals.read_back(rows, images["image_id"].to_pylist(), questions)
    stand = questions.settle(found)
    names = [rule.class_name for rule in questions.rules]
    image = found.image[stand.row]
    edges = np.flatnonzero(np.r_[True, np.diff(image) > 0]) if len(image) else np.zeros(0, np.int64)
    parts = []
    for row, rule in zip(np.split(stand.row, edges[1:]), np.split(stand.rule, edges[1:]), strict=True):
        if len(row):
            said = Detections(found.boxes[row], found.scores[row], tuple(names[i] for i in rule.tolist()))
            parts.append((keys[found.image[row[0]]], questions.producer, said))
    return detection_rows(parts)


def _in_order(rows: pa.Table, images: pa.Table, producers: Sequence[str]) -> pa.Table:
    """Rows image by image, and of each labeller by labeller."""
    image = pc.index_in(rows["image_id"], images["image_id"].combine_chunks()).to_numpy(zero_copy_only=False)
    labeller = pc.index_in(rows["producer"], pa.array(producers, pa.string())).to_numpy(zero_copy_only=False)
    return rows.take(pa.array(np.lexsort((np.arange(rows.num_rows), labeller, image))))


def vocabulary(project: Project) -> pa.Table:
    """Rows of `vocabulary`: how each labeller understood each prompt of the project."""
    rows = []
    for labeller in project.config.labelling.labellers:
        asked = labeller_questions(labeller, project.config)  # spares loading a large network
        known = asked or build_labeller(labeller, project.folder, project.config)
        rows += [{"producer": known.producer, **vars(term)} for term in known.vocabulary()]
    return schema.table("vocabulary").from_rows(rows)


def _labellers(config: ProjectConfig, folder: Path) -> list[Detector]:
    return [build_labeller(labeller, folder, config) for labeller in config.labelling.labellers]
