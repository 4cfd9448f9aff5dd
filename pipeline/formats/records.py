"""What every annotation format is read into, and how its file references are matched to a batch."""

from __future__ import annotations

import codecs
import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pipeline.errors import DataError
from pipeline.ontology import Ontology
from pipeline.sources import SourceFile

# How alike a name must be to one of the project's to be taken for a slip rather than another class.
# Of COCO's 80 names, no two are as alike as this.
_SLIP = 0.85
_SMALL = 256 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that people labelled.

    Attributes:
        file_name: image file in the batch.
        class_name: class of the project.
        box: x1, y1, x2, y2 in pixels of the upright photo, as drawn (it may reach outside);
            None for a label of the whole image.
        mask: COCO compressed RLE counts at the photo's size.
        ignore: not to be counted, for instance VOC's `difficult`.
    """

    file_name: str
    class_name: str
    box: tuple[float, float, float, float] | None
    mask: str | None = None
    is_crowd: bool = False
    truncated: bool = False
    ignore: bool = False


@dataclass
class Labels:
    """What was read of a batch.

    Attributes:
        annotated: image file -> annotation file, for every image that is completely labelled.
        unasked: classes that the project did not ask for, and how often they occur.
        unmatched: annotation files, and how many of their images the batch lacks or cannot use.
    """

    records: list[Record] = field(default_factory=list)
    annotated: dict[str, str] = field(default_factory=dict)
    unasked: Counter[str] = field(default_factory=Counter)
    unmatched: Counter[str] = field(default_factory=Counter)

    def annotate(self, file_name: str, by: str) -> None:
        """Mark an image as labelled by the annotation file `by`.

        Raises:
            DataError: another annotation file has labelled it too, so every box would count twice.
        """
        if self.annotated.setdefault(file_name, by) != by:
            raise DataError(
                f"{file_name} is labelled in two files, {self.annotated[file_name]} and {by}",
                "keep one of them in the batch",
            )


class Folder:
    """One batch as its annotation readers see it.

    Args:
        files: all files of the batch.
        read: the bytes of one of them.
        sizes: (width, height) in upright pixels of each image file that could be decoded.
        ontology: the project's classes.
        ignored: further names that may appear in annotations and are not wanted.
    """

    def __init__(
        self,
        files: Sequence[SourceFile],
        read: Callable[[SourceFile], bytes],
        sizes: Mapping[str, tuple[int, int]],
        ontology: Ontology,
        ignored: Iterable[str] = (),
    ) -> None:
        self.sidecars = [f for f in files if f.is_sidecar]
        self.sizes = sizes
        self.ontology = ontology
        self._images = _Index(f.name for f in files if not f.is_sidecar)
        self._read = read
        self._kept: dict[str, bytes] = {}
        self._ignored = {name.strip().casefold() for name in ignored}

    def with_suffix(self, *suffixes: str) -> list[SourceFile]:
        """Sidecars whose names end so, in order."""
        return [f for f in self.sidecars if PurePosixPath(f.name).suffix.lower() in suffixes]

    def data(self, file: SourceFile) -> bytes:
        """A file's bytes. Small ones are kept, since formats are told apart by looking inside."""
        if file.name in self._kept:
            return self._kept[file.name]
        data = self._read(file)
        if len(data) <= _SMALL:
            self._kept[file.name] = data
        return data

    def text(self, file: SourceFile) -> str:
        """A file's text: UTF-8, or UTF-16 with its mark, without a byte order mark.

        Raises:
            DataError: it is in another encoding.
        """
        data = self.data(file)
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            return data.decode("utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(f"{file.name}, line {line}: not UTF-8 text", "save it as UTF-8") from error

    def image(self, reference: str, by: str) -> str | None:
        """The image file that an annotation file `by` calls `reference`; None when the batch has none.

        Windows and absolute paths, other folders and other extensions are seen through.

        Raises:
            DataError: it could be several images.
        """
        return self._images.find(reference, by)

    def resolve(self, word: str, labels: Labels, where: str) -> str | None:
        """The project's class for people's `word`; None for one that the project did not ask for,
        which is counted in `labels.unasked` unless it is to be ignored.

        Raises:
            DataError: it is none, but so like one that it must be a slip.
        """
        found = self.ontology.resolve(word)
        if found is not None:
            return found
        plain = word.strip().casefold()
        if plain in self._ignored:
            return None
        aliases = [alias.casefold() for c in self.ontology for alias in (c.name, *c.aliases)]
        close = difflib.get_close_matches(plain, aliases, n=1, cutoff=_SLIP)
        if close:
            raise DataError(
                f"{where}: unknown class {word!r}, did you mean {self.ontology.resolve(close[0])!r}?",
                "correct it, add it to that class's aliases in project.yaml, or to source.ignored_classes",
            )
        labels.unasked[word] += 1
        return None


class _Index:
    """Finds files by the names that people's tools give them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names):
            path = PurePosixPath(name.casefold())
            self._by_name[path.name].append(name)
            self._by_stem[path.stem].append(name)

    def find(self, reference: str, by: str) -> str | None:
        wanted = PurePosixPath(reference.strip().replace("\\", "/").casefold())
        found = self._by_name.get(wanted.name) or self._by_stem.get(wanted.stem) or []
        if len(found) < 2:
            return found[0] if found else None
        folder = PurePosixPath(by.casefold()).parent.parts
        ranked = sorted(found, key=lambda name: _likeness(name, wanted, folder), reverse=True)
        first, second = (_likeness(name, wanted, folder) for name in ranked[:2])
        if first == second:
            raise DataError(
                f"{by}: {reference!r} could be {ranked[0]} or {ranked[1]}",
                "write the path from the batch's folder, or make the names of the images unique",
            )
        return ranked[0]


def _likeness(name: str, wanted: PurePosixPath, folder: tuple[str, ...]) -> tuple[int, int, int]:
    """How well a file fits: folders shared with the reference from its end; with the annotation
    file from the start; and none that is beside the way."""
    parts = PurePosixPath(name.casefold()).parent.parts
    shared = _common(parts[::-1], wanted.parent.parts[::-1])
    near = _common(parts, folder)
    return shared, near, near - len(parts)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    count = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        count += 1
    return count


def number(value: object, where: str) -> float:
    """A finite number out of a file.

    Raises:
        DataError: it is none.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise DataError(f"{where}: {value!r} is not a number", "correct or remove that entry")
    return found
