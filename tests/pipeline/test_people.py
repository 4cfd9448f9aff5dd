"""The commands review, export and import."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from pipeline import schema
from pipeline.cli import app as commands
from pipeline.cli import show
from pipeline.config import Project
from pipeline.exchange import FORMATS, dataset
from pipeline.formats import Folder, read_labels
from pipeline.reviewing.server import open_server
from pipeline.sources import SourceFile
from pipeline.store import Store
from tests.pipeline.curated_rows import as_labels
from tests.pipeline.review_world import HEIGHT, WIDTH, build


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("COLUMNS", "200")
    show._console.cache_clear()
    return build(tmp_path, monkeypatch)


def cvp(*arguments: object) -> Result:
    return CliRunner().invoke(commands.app, [str(a) for a in arguments])


@pytest.mark.parametrize("name", FORMATS)
def test_out_and_in_again(name: str, project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sent = cvp("export", "pets", out, "--format", name)
    assert sent.exit_code == 0 and str(out) in sent.output and "24 labels on 6 images" in sent.output
    back = cvp("import", "pets", out / FORMATS[name].FILE, "-f", name, "-r", "ann", "--unchanged-is-yes")
    assert back.exit_code == 0 and "24 yes on 6 images" in back.output and "cvp run pets" in back.output
    again = cvp("import", "pets", out / FORMATS[name].FILE, "-f", name, "-r", "ann", "--unchanged-is-yes")
    assert "no new decisions" in again.output
    assert "0 labels on 0 images" in cvp("export", "pets", tmp_path / "rest", "-f", name).output


@pytest.mark.parametrize("name", dataset.FORMATS)
def test_a_finished_dataset_with_its_pictures(name: str, project: Project, tmp_path: Path) -> None:
    store = Store(project.store_uri)
    first = store.read("images", "2026-01").column("image_id").to_pylist()[:2]
    gold = [{"image_id": i, "batch": "2026-01", "source": "s"} for i in first]
    store.write("annotated_images", schema.table("annotated_images").from_rows(gold), "2026-01")
    corners = np.array([[1, 2, 30, 40]], np.float32)
    truth = schema.annotations("ground_truth", image_ids=first[:1], batch="2026-01", producer="human",
                               classes=["cat"], boxes=corners)  # fmt: skip
    labels = store.read("labels", "2026-01")
    others = labels.filter(pc.invert(pc.is_in(labels["image_id"], pa.array(first))))
    store.write("labels", pa.concat_tables([as_labels(truth), others]), "2026-01")
    drawn = [{"image_id": i, "batch": "2026-01", "split": "test", "location": "x", "gold": True} for i in first]
    store.write("splits", schema.table("splits").from_rows(drawn))
    out = tmp_path / "out"
    more = ["--what", "dataset"] if name in FORMATS else []
    sent = cvp("export", "pets", out, "-f", name, *more)
    # Two images that people labelled, one of them empty; and the accepted label of each of the four others.
    assert sent.exit_code == 0 and "5 labels on 6 images" in sent.output, sent.output
    assert len(list(out.rglob("*.jpg"))) == 6 and (out / "losses.json").is_file()
    listed = [SourceFile(str(p.relative_to(out)), str(p), p.stat().st_size, "") for p in out.rglob("*") if p.is_file()]
    sizes = {f.name: (WIDTH, HEIGHT) for f in listed if not f.is_sidecar}
    found = read_labels(Folder(listed, lambda f: Path(f.uri).read_bytes(), sizes, project.ontology), "auto")
    assert len(found.annotated) == 6 and len(found.records) == 5
    assert sum(np.allclose(r.box or 0, corners, atol=0.01) for r in found.records) == 1


def test_losses_are_shown_and_kept(project: Project, tmp_path: Path) -> None:
    for photo in (tmp_path / "photos").rglob("*.png"):
        photo.unlink()
    result = cvp("export", "pets", tmp_path / "out", "-f", "cvat")
    assert result.exit_code == 0 and "! picture 2026-01/" in result.output and "is not on" in result.output
    assert len(json.loads((tmp_path / "out" / "losses.json").read_text())) == 6


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("export", "pets"), 2, "name OUT, or use --server"),
        (("export", "pets", "x", "--server"), 2, "and not both"),
        (("export", "pets", "--server", "-f", "cvat"), 2, "for Label Studio only"),
        (("export", "pets", "--server"), 2, "no Label Studio server is configured"),
        (("export", "pets", "x", "-f", "cvta"), 2, "did you mean 'cvat'"),
        (("import", "pets"), 2, "name FILE, or use --server"),
        (("import", "pets", "none.json"), 3, "cannot read none.json"),
        (("import", "pets", "--server"), 2, "no Label Studio server is configured"),
        (("review", "pets", "--reviewer", " "), 3, "cannot be a reviewer's name"),
        (("review", "pest"), 2, "did you mean 'pets'"),
    ],
)
def test_mistakes(project: Project, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = cvp(*arguments)
    assert result.exit_code == code and words in result.output, result.output


def test_review_of_a_project_that_has_not_run(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "new"))
    result = cvp("review", "pets")
    assert result.exit_code == 5 and "cvp run pets" in result.output


def test_the_usual_port_may_be_taken(project: Project) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 8765))
            other.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        server = open_server(project, "ann")
        assert server.server_port != 8765 and server.url == f"http://127.0.0.1:{server.server_port}/"
        server.server_close()
