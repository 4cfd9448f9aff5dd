from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from pipeline import encode, search
from pipeline.cli import app
from pipeline.compute import Compute
from pipeline.config import ProjectConfig
from pipeline.errors import DataError, StoreError
from pipeline.images import UnusableImage
from pipeline.models.profiles import build_encoder
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.pipeline.photo_rows import save, speckled, tiny_config


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ProjectConfig, Store]:
    """Twelve photos of batch b and, again, the first three of them in batch c."""
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path / "projects"))
    monkeypatch.delenv("CVP_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    config = tiny_config(curation={"patches": 2})
    folder = tmp_path / "projects" / "p"
    folder.mkdir(parents=True)
    (folder / "project.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    store, vectors = Store(str(tmp_path / "home" / "store" / "p")), Vectors(str(tmp_path / "home" / "store" / "p"))
    for batch, count in (("b", 12), ("c", 3)):
        (tmp_path / batch).mkdir()
        images = save(tmp_path / batch, [speckled(i) for i in range(count)], batch)
        store.write("images", images, batch)
        staging = store.staging("embeddings", batch, "f")
        encode.embed_batch(images, batch, vectors, config, Compute(batch_size=4), staging)
    return config, store


def brute_force(vector: np.ndarray) -> list[tuple[str, float]]:
    """File names and cosines of the twelve photos, nearest first."""
    cosines = build_encoder(tiny_config()).encode_images([speckled(i) for i in range(12)]) @ vector
    return [(f"{i:03d}.png", float(cosines[i])) for i in np.argsort(-cosines, kind="stable")]


def test_a_text_finds_what_brute_force_finds(project: tuple[ProjectConfig, Store]) -> None:
    found = search.by_text(*project, "a bright thing", 5)
    expected = brute_force(build_encoder(project[0]).encode_texts(["a bright thing"])[0])[:5]
    assert found.schema == search.LAYOUT and found.column("rank").to_pylist() == [1, 2, 3, 4, 5]
    assert found.column("file_name").to_pylist() == [name for name, _ in expected]
    np.testing.assert_allclose(found.column("similarity").to_numpy(), [s for _, s in expected], atol=1e-5)


def test_a_photo_finds_itself_once_though_it_arrived_twice(
    project: tuple[ProjectConfig, Store], tmp_path: Path
) -> None:
    found = search.by_image(*project, tmp_path / "c" / "001.png", 12)
    expected = brute_force(build_encoder(project[0]).encode_images([speckled(1)])[0])
    assert found.column("file_name").to_pylist() == [name for name, _ in expected]
    assert found.column("file_name")[0].as_py() == "001.png" and found.column("similarity")[0].as_py() > 1 - 1e-5
    only = search.by_image(*project, tmp_path / "c" / "001.png", 12, batch="c")
    assert only.num_rows == 3 and set(only.column("batch").to_pylist()) == {"c"}


def test_what_cannot_be_searched_is_an_error(project: tuple[ProjectConfig, Store], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to search for"):
        search.by_text(*project, "  ", 5)
    with pytest.raises(DataError, match="cannot read"):
        search.by_image(*project, tmp_path / "none.png", 5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnusableImage):
        search.by_image(*project, tmp_path / "text.png", 5)
    with pytest.raises(StoreError, match="no vectors of") as caught:
        search.by_text(project[0], Store(str(tmp_path / "empty")), "x", 5)
    assert "cvp run" in caught.value.remedy


def cvp(*arguments: str) -> Result:
    return CliRunner().invoke(app.app, list(arguments))


def test_the_command_prints_a_table_and_writes_a_contact_sheet(
    project: tuple[ProjectConfig, Store], tmp_path: Path
) -> None:
    sheet = tmp_path / "hits.png"
    (tmp_path / "b" / "003.png").unlink()
    result = cvp("search", "p", "a bright thing", "-n", "12", "--sheet", str(sheet))
    assert result.exit_code == 0, result.output
    assert all(f"{i:03d}.png" in result.stdout for i in range(12)) and "similarity" in result.stdout
    picture = Image.open(io.BytesIO(sheet.read_bytes()))
    assert picture.format == "PNG" and picture.width > 900 and picture.height > 700
    hits = json.loads(cvp("search", "p", "--image", str(tmp_path / "b" / "002.png"), "-n", "2", "-f", "json").stdout)
    assert hits[0]["file_name"] == "002.png" and len(hits) == 2 and {"uri", "image_id"} <= set(hits[0])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("x", "--image", "y.png"), 2), (("x", "-f", "xml"), 2), (("x", "--sheet", "hits.gif"), 5)],
)
def test_the_command_says_what_is_wrong(
    project: tuple[ProjectConfig, Store], arguments: tuple[str, ...], code: int
) -> None:
    result = cvp("search", "p", *arguments)
    assert result.exit_code == code and "→" in result.output


def test_no_images_found_is_an_empty_table(project: tuple[ProjectConfig, Store]) -> None:
    found = search.by_text(*project, "x", 3, batch="no such batch")
    assert isinstance(found, pa.Table) and found.num_rows == 0
