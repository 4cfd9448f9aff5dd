"""What a batch is compared with: the same rows and vectors as of a search through everything, and read once a run."""

import numpy as np
import pyarrow as pa
import pytest

from assets.comparing import others, vectors_of
from assets.curation import encoder_of
from assets.resources import ComputeResource, s3_resource
from assets.tables import Work
from pipeline import schema
from pipeline.store import Store
from tests.assets.conftest import World


def test_every_batch_is_compared_with_the_same_others_which_are_read_once(
    finished: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, read = finished.project, list[str]()
    store, encoder = Store(project.store_uri), encoder_of(project)
    images = store.read("images")
    compared = images.column("image_id").to_pylist()[::-2]
    real = Store.read_or_empty

    def counted(self: Store, name: str, *args: object, **more: object) -> pa.Table:
        read.append(name)
        return real(self, name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_or_empty", counted)
    kept: dict[object, object] = {}
    for batch in ("a", "b", "c"):
        work = Work(project, store, ComputeResource().of(project), s3_resource(), batch, kept=kept)
        found = others(work, "images", compared, ["c", "a", "b"])
        wanted = schema.where_in(images, "image_id", compared)
        assert found.equals(wanted.filter(pa.compute.not_equal(wanted.column("batch"), batch)))
        both = pa.concat_tables([work.read("images"), found])
        ids, vectors = vectors_of(work, both, compared, encoder)
        expected = work.vectors.fetch(both.column("image_id").to_pylist(), encoder)
        assert ids == expected[0]
        assert np.array_equal(vectors, expected[1])
    assert read == ["images"]
