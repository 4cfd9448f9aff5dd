"""Samples are fetched whole or not at all, and come out the same each time."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline import masks, samples
from pipeline.errors import DataError, PipelineError
from pipeline.samples import Sample, is_complete, pull, sample_path, scenes, stamps, textile, trees
from pipeline.weights import Say

COCO_NAMES = (Path(__file__).parent / "formats" / "coco_names.txt").read_text(encoding="utf-8").split("\n")


def build(package: Path, folder: Path, say: Say) -> None:
    with zipfile.ZipFile(package) as wheel:
        for name in wheel.namelist():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(wheel.read(name))
            say(name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sample]:
    """Makes a sample out of the files given, as though an index served it."""
    monkeypatch.setenv("CVP_SAMPLES", str(tmp_path / "samples"))

    def make(files: dict[str, str], name: str = "toy", **changes: object) -> Sample:
        wheel = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(wheel, "w") as bundle:
            for path, text in files.items():
                bundle.writestr(path, text)
        payload = wheel.read_bytes()

        def download(requirement: str, folder: Path) -> Path:
            target = folder / "toy-1-py3-none-any.whl"
            target.write_bytes(payload)
            return target

        monkeypatch.setattr(samples, "download_wheel", download)
        item = Sample(name, "", "MIT", "pypi://toy==1", hashlib.sha256(payload).hexdigest(), "1", build)
        item = replace(item, **changes)  # type: ignore[arg-type]
        monkeypatch.setitem(samples.SAMPLES, name, item)
        return item

    return make


FILES = {"2026-01/a.txt": "one", "2026-01/sub/b.txt": "two", "2026-02/c.txt": "three"}


def found(name: str = "toy") -> dict[str, str]:
    root = sample_path(name)
    paths = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(root).as_posix(): p.read_text() for p in paths}


def test_pull_lays_out_the_files_once(fake: Callable[..., Sample], tmp_path: Path) -> None:
    fake(FILES)
    said: list[str] = []
    assert not is_complete("toy")
    assert pull("toy", said.append) == sample_path("toy")
    assert found() == FILES and is_complete("toy") and said
    said.clear()
    pull("toy", said.append)
    assert not said
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["toy"]


@pytest.mark.parametrize("damage", ["change", "remove", "manifest", "garbled manifest"])
def test_damage_is_noticed_and_mended_and_what_was_added_stays(fake: Callable[..., Sample], damage: str) -> None:
    fake(FILES)
    pull("toy")
    root = sample_path("toy")
    (root / "2026-03").mkdir()
    (root / "2026-03" / "mine.txt").write_text("mine")
    assert is_complete("toy")
    target = root / ".manifest.json" if "manifest" in damage else root / "2026-01" / "a.txt"
    if damage in ("remove", "manifest"):
        target.unlink()
    else:
        target.write_text("changed")
    assert not is_complete("toy")
    pull("toy")
    assert is_complete("toy") and found() == FILES | {"2026-03/mine.txt": "mine"}


def test_new_recipe_replaces_the_old_files(fake: Callable[..., Sample]) -> None:
    fake(FILES)
    pull("toy")
    fake({"2026-01/a.txt": "new"}, recipe="2")
    assert not is_complete("toy")
    pull("toy")
    assert found() == {"2026-01/a.txt": "new"} and not (sample_path("toy") / "2026-02").exists()


def test_wrong_hash_keeps_nothing(fake: Callable[..., Sample], tmp_path: Path) -> None:
    fake(FILES, sha256="0" * 64)
    with pytest.raises(DataError, match="hashes to"):
        pull("toy")
    assert not sample_path("toy").exists() and not list((tmp_path / "samples").iterdir())


def test_failing_build_keeps_nothing(fake: Callable[..., Sample], tmp_path: Path) -> None:
    def broken(package: Path, folder: Path, say: Say) -> None:
        (folder / "half").write_text("half")
        raise DataError("no", "try again")

    fake(FILES, build=broken)
    with pytest.raises(DataError):
        pull("toy")
    assert not list((tmp_path / "samples").iterdir())


def test_needs_are_pulled_first_and_change_the_identity(fake: Callable[..., Sample]) -> None:
    fake(FILES, "base")
    item = fake(FILES, "top", needs=("base",))
    pull("top")
    assert is_complete("base") and is_complete("top")
    before = item.identity
    fake(FILES, "base", recipe="2")
    assert item.identity != before


def test_unknown_sample_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'trees'"):
        sample_path("tree")


# -- apt ------------------------------------------------------------------------------------------


def test_no_apt_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes.shutil, "which", lambda _: None)
    with pytest.raises(PipelineError, match="no apt-get") as error:
        scenes.download_deb("stamps=1", tmp_path, lambda _: None)
    assert "trees" in error.value.remedy


def fake_apt(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    for name, text in (("apt-get", script), ("dpkg-deb", "exit 1")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_apt_without_lists_fetches_them_into_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    script = f"""echo "$@" >> {log}
    case "$*" in
      *update*) touch {tmp_path}/updated ;;
      *) test -e {tmp_path}/updated || {{ echo 'E: Unable to locate package' >&2; exit 100; }}
         echo deb > stamps_1_all.deb ;;
    esac"""
    fake_apt(tmp_path / "bin", script, monkeypatch)
    (tmp_path / "work").mkdir()
    said: list[str] = []
    assert scenes.download_deb("stamps=1", tmp_path / "work", said.append).name == "stamps_1_all.deb"
    assert "lists" in said[0]
    calls = log.read_text().splitlines()
    assert len(calls) == 3 and all(str(tmp_path / "work") in c for c in calls[1:])


def test_apt_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_apt(tmp_path / "bin", "echo 'E: no network' >&2; exit 100", monkeypatch)
    (tmp_path / "work").mkdir()
    with pytest.raises(DataError, match="E: no network"):
        scenes.download_deb("stamps=1", tmp_path / "work", lambda _: None)


# -- recipes --------------------------------------------------------------------------------------


def test_no_pixel_of_a_tree_photo_is_in_two_parts() -> None:
    for a, b in combinations(trees.PARTS, 2):
        if a.photo == b.photo:
            assert a.window and b.window
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.window, b.window
            assert min(ax2, bx2) <= max(ax1, bx1) or min(ay2, by2) <= max(ay1, by1)


def test_textile_numbers_stay_in_one_batch_with_exact_shares() -> None:
    batches = textile._batches()
    assert sorted(batches) == list(range(1, 1001))
    for numbers in (range(1, 501), range(501, 1001)):
        counts = [sum(batches[n] == name for n in numbers) for name, _ in textile.BATCHES]
        assert counts == [round(500 * share) for _, share in textile.BATCHES]


def test_stamps_are_coco_classes_and_clutter_is_none_of_them() -> None:
    assert len(stamps.STAMPS) >= 15 and set(stamps.STAMPS) <= set(COCO_NAMES)
    used = [path for paths in stamps.STAMPS.values() for path in paths]
    assert len(used) == len(set(used)) and not set(used) & set(stamps.CLUTTER)


# -- scenes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> scenes.Composer:
    """The composer on discs and boxes of plain colours instead of the fetched cut-outs."""
    root = tmp_path_factory.mktemp("stamps")
    rng = np.random.default_rng(0)
    for i, path in enumerate(sorted({*stamps.CLUTTER, *sum(stamps.STAMPS.values(), ())})):
        stamp = Image.new("RGBA", (90 + i % 50, 120), (0, 0, 0, 0))
        shape = ImageDraw.Draw(stamp)
        fill = (*(int(v) for v in rng.integers(0, 255, 3)), 255)
        (shape.ellipse if i % 2 else shape.rectangle)((10, 10, 80, 110), fill=fill)
        target = root / "stamps" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        stamp.save(target)
    for name, size in (
        ("trees/2026-06-01-yell/yell_a.png", (700, 600)),
        ("textile/2026-06-01-mill/nominal/1.jpg", (250, 250)),
    ):
        target = root / "samples" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3)).astype(np.uint8)).save(target)
    return scenes.Composer(root / "stamps", root / "samples")


PLAN = scenes.BATCHES[0]


def test_scenes_are_the_same_each_time(composer: scenes.Composer) -> None:
    first, second, other = composer.compose(PLAN, 1), composer.compose(PLAN, 1), composer.compose(PLAN, 2)
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first[0], other[0])
    assert [p.class_name for p in first[1]] == [p.class_name for p in second[1]]


def test_masks_are_what_is_seen(composer: scenes.Composer) -> None:
    for number in range(1, 13):
        pixels, placed = composer.compose(PLAN, number)
        assert pixels.shape == (480, 640, 3) and pixels.dtype == np.uint8
        assert np.sum([p.visible for p in placed], axis=0).max(initial=0) <= 1  # no pixel shows two things
        for item in placed:
            assert item.visible.sum() >= max(scenes._LEAST_PIXELS, scenes._LEAST_VISIBLE * item.whole)
            row = scenes._annotation(item)
            ys, xs = np.nonzero(item.visible)
            assert row["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
            assert np.array_equal(masks.decode(row["segmentation"]["counts"], 480, 640), item.visible)
            assert row["area"] == item.visible.sum() and 0 < row["visible"] <= 1


def test_mask_covers_the_colour_of_its_cut_out(composer: scenes.Composer) -> None:
    """On a flat ground, without camera effects, the pixels that changed are those of the masks."""
    rng = np.random.default_rng(1)
    canvas = np.full((480, 640, 3), 128, np.float32)
    placed: list[scenes._Placed] = []
    for path in ("vehicles/auto/sedan.png", "animals/mammals/elephant.png", "food/fruit/banana.png"):
        scenes._place(rng, canvas, placed, "thing", composer._stamps[path])
    changed = np.abs(canvas - 128).max(-1) > 0
    seen = np.any([p.visible for p in placed], axis=0)
    assert len(placed) == 3 and not (seen & ~changed).any()
    rim = changed & ~seen  # half-transparent edges
    assert rim.sum() < 0.1 * seen.sum()


def test_missing_cut_outs_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable") as error:
        scenes.Composer(tmp_path, tmp_path)
    assert error.value.remedy


# -- the real ones --------------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.parametrize(("name", "files"), [("trees", 12), ("textile", 2000)])
def test_pulled_samples_are_complete(name: str, files: int) -> None:
    assert is_complete(name), f"run: cvp samples pull {name}"
    listed = json.loads((sample_path(name) / ".manifest.json").read_text())["files"]
    assert len(listed) == files


@pytest.mark.weights
def test_parts_join_to_the_photo_they_were_cut_from() -> None:
    root = sample_path("trees")
    north = Image.open(root / "2026-06-01-yell" / "yell_528000_train.png")
    south = Image.open(root / "2026-07-01-yell" / "yell_528000_south.png")
    assert (north.width, north.height + south.height) == (2299, 2472) and north.width == south.width
    left = Image.open(root / "2026-06-01-yell" / "yell_541000_val.png")
    right = Image.open(root / "2026-06-08-yell" / "yell_541000_new.png")
    assert (left.width + right.width, left.height) == (1249, 1035)
    seam = np.asarray(left)[:, -1].astype(float), np.asarray(right)[:, 0].astype(float)
    far = np.asarray(right)[:, -1].astype(float)
    assert np.abs(seam[0] - seam[1]).mean() < 0.6 * np.abs(seam[0] - far).mean()


@pytest.mark.weights
def test_pulled_scenes_hold_exact_truth() -> None:
    if not is_complete("scenes"):
        pytest.skip("the sample scenes needs apt-get: cvp samples pull scenes")
    names: set[str] = set()
    for plan in scenes.BATCHES:
        folder = sample_path("scenes") / plan.name
        content = json.loads((folder / "annotations.json").read_text())
        assert len(content["images"]) == plan.images == len(list((folder / "images").glob("*.jpg")))
        by_id = {c["id"]: c["name"] for c in content["categories"]}
        names |= {by_id[a["category_id"]] for a in content["annotations"]}
        sizes = [max(a["bbox"][2:]) for a in content["annotations"]]
        hidden = [a["visible"] for a in content["annotations"]]
        assert min(sizes) < 50 and max(sizes) > 250 and min(hidden) < 0.6
    assert len(names) >= 15
