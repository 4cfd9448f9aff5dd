"""What a batch is compared with: the same rows and vectors as of a search through everything, and read once a run."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from assets.comparing import others, vectors_of
from assets.resources import ComputeResource, s3_resource
from assets.tables import Work
from pipeline import schema
from pipeline.store import Store
from pipeline.vectors import Vectors, vector_schema
from tests.assets.conftest import World
from tests.pipeline.curated_rows import image_rows


def test_every_batch_is_compared_with_the_same_others_which_are_read_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, read = world.project, list[str]()
    store, kept = Store(project.store_uri), Vectors(project.store_uri)
    names = {"a": ["a1", "x", "a0"], "b": ["b0", "x"], "c": ["c0"]}  # x arrived twice
    for batch, ids in names.items():
        store.write("images", image_rows(ids, batch), batch)
        points = pa.FixedSizeListArray.from_arrays(pa.array([float(ord(c)) for i in ids for c in f"{i:2}"]), 2)
        columns = {"image_id": ids, "batch": [batch] * len(ids), "encoder": ["e"] * len(ids), "patch": [0] * len(ids)}
        kept.replace_batch(batch, "e", [pa.table(columns | {"vector": points.cast(pa.list_(pa.float32(), 2))},
                                                 schema=vector_schema(2))])  # fmt: skip
    images, compared = store.read("images"), ["c0", "x", "b0", "a1"]
    real = Store.read_or_empty

    def counted(self: Store, name: str, *args: object, **more: object) -> pa.Table:
        read.append(name)
        return real(self, name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "read_or_empty", counted)
    shared: dict[object, object] = {}
    for batch in names:
        work = Work(project, store, ComputeResource().of(project), s3_resource(), batch, kept=shared)
        found = others(work, "images", compared, ["c", "a", "b"])
        wanted = schema.where_in(images, "image_id", compared)
        assert found.equals(wanted.filter(pc.not_equal(wanted.column("batch"), batch)))
        both = pa.concat_tables([work.read("images"), found])
        ids, vectors = vectors_of(work, both, compared, "e")
        expected = kept.fetch(both.column("image_id").to_pylist(), "e")
        assert ids == expected[0]
        assert np.array_equal(vectors, expected[1])
    assert read == ["images"]
