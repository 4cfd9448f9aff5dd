"""What Dagster itself shows as stale, before and after a change, batch by batch."""

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from assets import launch
from assets.definitions import project_definitions
from assets.graph import recipes
from assets.resources import resources
from pipeline import schema
from tests.assets.conftest import World

LABELLER = """
import numpy as np
from pipeline.models.roles import Detections

class Own:
    def __init__(self, ontology, prompt="", edge=9): self.edge = edge
    def detect(self, images):
        box = np.array([[1, 1, self.edge, self.edge]], np.float32)
        return [Detections(box, np.array([0.9], np.float32), ("square",)) for _ in images]
"""


def prompted(world: World, **options: object) -> None:
    own = {"name": "own", "path": "own.py:Own", "options": options}
    world.write(labelling={"labellers": [{"name": "bright", "kind": "profile"}, own]})


def stale(world: World) -> dict[str, set[str | None]]:
    """Tables that Dagster shows as stale, with their batches; none is missing."""
    definitions = project_definitions(world.project, resources())
    found: dict[str, set[str | None]] = {}
    with launch.instance() as instance:
        context = LoadingContextForTest(instance)
        resolver = CachingStaleStatusResolver(instance, definitions.resolve_asset_graph(), context)
        batches = instance.get_dynamic_partitions("squares_batches")
        for name, table in schema.TABLES.items():
            for batch in batches if table.batched else [None]:
                status = resolver.get_status(dg.AssetKey(["squares", name]), batch)
                if status == StaleStatus.STALE:
                    found.setdefault(name, set()).add(batch)
                assert status != StaleStatus.MISSING, (name, batch)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_changed_prompt_makes_its_labeller_stale_and_then_what_depends_on_it(world: World) -> None:
    (world.folder / "own.py").write_text(LABELLER)
    prompted(world, prompt="a square")
    # In two runs, of which the second has a batch of the first in the middle of its range.
    assert launch.run("squares", batches=["b"], select="collection,quality").success
    first = launch.run("squares")
    assert first.success and "images[b]" not in first.executed, first.failure
    assert stale(world) == {}
    prompted(world, prompt="a bright square", edge=20)
    makers = {recipe.name: recipe for recipe in recipes(world.project)}
    made = {key: {"a", "b", "c"} for key in makers["detections"].outputs}
    assert stale(world) == made | {"vocabulary": {None}, "prompt_errors": {None}}, (
        "what the labeller's words are part of"
    )

    outcome = launch.run("squares", batches=["a", "c"], select="detections")
    assert outcome.success and outcome.executed == ["detections[a]", "detections[c]"], outcome.failure
    found = stale(world)
    assert {name: found.pop(name) for name in made} == {key: {"b"} for key in made}
    followers = [r for r in makers.values() if "detections" in r.inputs]
    expected = {name: {"a", "c"} if r.batched else {None} for r in followers for name in r.outputs}
    assert expected.keys() > {"masks", "labels", "trust"} and "images" not in expected
    assert found == expected | {"vocabulary": {None}}

    outcome = launch.run("squares")
    assert outcome.success and stale(world) == {}
    assert "detections[b]" in outcome.executed and "detections[a]" not in outcome.executed
