from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.compute import Compute
from pipeline.encode import EncodeWorker, embed, receipts, windows
from pipeline.images import Reader
from pipeline.models.tiny import TinyEncoder
from pipeline.store import Store
from pipeline.vectors import vector_schema
from tests.pipeline.photo_rows import row, save, speckled, tiny_config

GRID = {"curation": {"patches": 2}}


def matrix(vectors: pa.Table) -> np.ndarray:
    return np.stack(vectors.column("vector").to_pylist()).astype(np.float32)


def test_whole_images_and_windows_are_encoded_in_order(tmp_path: Path) -> None:
    photos = [speckled(k) for k in range(3)]
    images = save(tmp_path, photos)
    vectors = EncodeWorker(tiny_config(**GRID))(images)
    assert vectors.schema.equals(vector_schema(16))
    assert vectors.column("patch").to_pylist() == [0, 1, 2, 3, 4] * 3
    assert vectors.column("image_id").to_pylist() == np.repeat(images.column("image_id").to_pylist(), 5).tolist()
    first = photos[0]
    parts = [first, first[:30, :40], first[:30, 40:], first[30:, :40], first[30:, 40:]]
    np.testing.assert_array_equal(matrix(vectors)[:5], TinyEncoder().encode_images(parts))


@pytest.mark.parametrize(("height", "width", "grid"), [(7, 9, 3), (2, 2, 4), (1, 5, 2), (60, 80, 8)])
def test_windows_tile_the_image_and_are_never_empty(height: int, width: int, grid: int) -> None:
    image = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    parts = list(windows(image, grid))
    assert len(parts) == grid**2 and all(p.size for p in parts)
    if height >= grid and width >= grid:
        rows = [np.concatenate(parts[r * grid : (r + 1) * grid], axis=1) for r in range(grid)]
        np.testing.assert_array_equal(np.concatenate(rows), image)


def test_a_grid_of_one_has_no_windows() -> None:
    assert list(windows(np.zeros((4, 4, 3), np.uint8), 1)) == []


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k) for k in range(4)])
    (tmp_path / "001.png").unlink()
    (tmp_path / "002.png").write_bytes(b"no longer a photo")
    vectors = EncodeWorker(tiny_config())(images)
    kept = images.column("image_id").take([0, 3]).to_pylist()
    assert vectors.column("image_id").to_pylist() == kept
    only_lost = EncodeWorker(tiny_config())(images.slice(1, 2))
    assert only_lost.num_rows == 0 and only_lost.schema.equals(vector_schema(16))


def test_tiles_are_encoded_as_their_window(tmp_path: Path) -> None:
    photo = speckled(5, 100, 120)
    save(tmp_path, [photo])
    tile = {"tile_x": 20, "tile_y": 10, "photo_width": 120, "photo_height": 100}
    rows = schema.table("images").from_rows([row(tmp_path / "000.png", 50, 40, **tile)])
    np.testing.assert_array_equal(
        matrix(EncodeWorker(tiny_config())(rows)), TinyEncoder().encode_images([photo[10:50, 20:70]])
    )


def test_no_images_give_no_vectors_and_no_receipts(tmp_path: Path) -> None:
    vectors = pa.concat_tables(embed(schema.table("images").empty(), tiny_config(), Compute(), staging(tmp_path)))
    assert vectors.num_rows == 0 and vectors.schema.equals(vector_schema(16))
    assert receipts(vectors).equals(schema.table("embeddings").empty())


def test_receipts_name_every_vector(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(1), speckled(2)])
    vectors = pa.concat_tables(embed(images, tiny_config(**GRID), Compute(), staging(tmp_path)))
    found = receipts(vectors)
    assert found.num_rows == 10 and set(found.column("dimensions").to_pylist()) == {16}
    assert schema.table("embeddings").duplicate_keys(found) == 0
    assert found.column("encoder").unique().to_pylist() == [TinyEncoder.producer]


@pytest.mark.parametrize("mode", ["local", pytest.param("auto", marks=pytest.mark.ray)])
def test_every_compute_gives_the_same_table(tmp_path: Path, mode: str) -> None:
    images = save(tmp_path, [speckled(k) for k in range(7)])
    config = tiny_config(**GRID)
    plain = pa.concat_tables(embed(images, config, Compute(), staging(tmp_path, "plain")))
    spread = pa.concat_tables(embed(images, config, Compute(mode, 2, 2, 1), staging(tmp_path, mode)))
    assert spread.equals(plain)


@pytest.mark.slow
@pytest.mark.weights
def test_compact_vectors_are_equal_bit_for_bit_in_other_processes(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(k, 90 + k, 120) for k in range(6)])
    config = tiny_config(profile="compact")
    plain = pa.concat_tables(embed(images, config, Compute(), staging(tmp_path, "plain")))
    spread = pa.concat_tables(embed(images, config, Compute("local", 2, 2, 1), staging(tmp_path, "local")))
    assert spread.equals(plain)
    assert matrix(plain).shape == (6, 256)


def test_the_reader_sees_what_was_saved(tmp_path: Path) -> None:
    images = save(tmp_path, [speckled(3)])
    np.testing.assert_array_equal(Reader().read_rows(images)[0], speckled(3))


def staging(folder: Path, name: str = "f") -> object:
    return Store(str(folder / "store")).staging("embeddings", "b", name)
