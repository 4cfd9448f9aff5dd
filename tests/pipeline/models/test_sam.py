"""Segment Anything against transformers' implementation and the package's own predictor, on real photos."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import masks
from pipeline.errors import ConfigError, WeightsError
from pipeline.models import foundation, sam_net
from pipeline.models.roles import Segmenter
from pipeline.models.sam import Sam, without_small_regions
from pipeline.weights import Checkpoint
from tests.pipeline.models import hf_weights, small

pytestmark = pytest.mark.weights

RELATIVE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.sam_checkpoint(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sam(checkpoint: Path) -> Sam:
    return Sam(checkpoint)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return small.photos()


def _boxes(photo: np.ndarray, n: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    size = np.array(photo.shape[1::-1])
    low = rng.uniform(0, size * 0.6, (n, 2))
    return np.hstack([low, low + rng.uniform(10, size * 0.4, (n, 2))])


def test_it_agrees_with_transformers(sam: Sam, photos: list[np.ndarray], record_property: Any) -> None:
    from PIL import Image
    from transformers import SamImageProcessorPil, SamProcessor

    peer = hf_weights.sam(sam.network, sam.config)
    edge = sam.config.image
    images = SamImageProcessorPil(
        size={"longest_edge": edge},
        pad_size={"height": edge, "width": edge},
        mask_size={"longest_edge": edge // 4},
        mask_pad_size={"height": edge // 4, "width": edge // 4},
    )
    processor = SamProcessor(images)
    for number, photo in enumerate(photos):
        boxes = _boxes(photo, seed=number)
        given = processor(Image.fromarray(photo), input_boxes=[boxes.tolist()], return_tensors="pt")
        with torch.inference_mode():
            theirs = peer(
                **{k: v.float() if v.is_floating_point() else v for k, v in given.items() if "sizes" not in k}
            )
            (embedding,) = sam.embed([photo])
            logits, predicted = sam.decode(embedding, boxes)
        full = images.post_process_masks(
            theirs.pred_masks, given["original_sizes"], given["reshaped_input_sizes"], binarize=False
        )[0]
        best = predicted.argmax(dim=1)
        (drawn,) = sam.draw(embedding, boxes)
        kept = full[torch.arange(len(boxes)), best]
        for name, ours, other in (
            ("small logits", logits, theirs.pred_masks[0]),
            ("predicted IoU", predicted, theirs.iou_scores[0]),
            ("full logits", drawn.logits, kept),
        ):
            off = (ours - other).abs().max().item()
            record_property(name, off)
            assert off <= RELATIVE * other.abs().max().item(), name
        differ = ((drawn.logits > 0) != (kept > 0)).sum().item()
        record_property("mask pixels", differ)
        assert differ <= 1e-4 * kept.numel()


def test_it_agrees_with_the_package_s_own_predictor(sam: Sam, photos: list[np.ndarray]) -> None:
    from segment_anything import SamPredictor
    from segment_anything.utils.amg import calculate_stability_score

    predictor = SamPredictor(sam.network)
    for number, photo in enumerate(photos):
        boxes = _boxes(photo, 4, number)
        (found,) = sam.segment([photo], [boxes])
        predictor.set_image(photo)
        for k, box in enumerate(boxes):  # one prompt at a time, as the package's examples have it
            drawn, quality, _ = predictor.predict(box=box, multimask_output=True)
            best = quality.argmax()
            mine = masks.decode(found.masks[k], *photo.shape[:2])
            assert (mine != drawn[best]).mean() < 1e-4
            assert found.area[k] == mine.sum()
            assert found.scores[k] == pytest.approx(np.clip(quality[best], 0, 1), abs=1e-4)
            logits, _, _ = predictor.predict(box=box, multimask_output=True, return_logits=True)
            stable = calculate_stability_score(torch.from_numpy(logits[best]), 0.0, 1.0).item()
            if np.isfinite(stable):
                assert found.stability is not None
                assert found.stability[k] == pytest.approx(stable, abs=1e-3)


def test_points_agree_with_the_package_s_own_predictor(sam: Sam, photos: list[np.ndarray]) -> None:
    from segment_anything import SamPredictor

    photo = photos[0]
    predictor = SamPredictor(sam.network)
    predictor.set_image(photo)
    points = np.array([[[50.0, 60], [200, 100]], [[10, 10], [300, 200]]])
    labels = np.array([[1, 0], [1, 1]])
    found = sam.segment_points(photo, points, labels)
    for k in range(2):
        drawn, quality, _ = predictor.predict(points[k], labels[k], multimask_output=True)
        mine = masks.decode(found.masks[k], *photo.shape[:2])
        assert (mine != drawn[quality.argmax()]).mean() < 1e-4


def test_everything_is_segmented_by_the_package_s_generator(sam: Sam, photos: list[np.ndarray]) -> None:
    found = sam.segment_everything(photos[0], 4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert len(found.masks) > 0 and (np.diff(found.scores) <= 0).all()
    for counts, area in zip(found.masks, found.area, strict=True):
        assert masks.area(counts) == area


def test_it_fills_the_role_and_images_are_independent(sam: Sam, photos: list[np.ndarray]) -> None:
    assert isinstance(sam, Segmenter)
    given = [_boxes(photos[0]), np.zeros((0, 4)), _boxes(photos[2], 3)]
    found = sam.segment(photos[:3], given)
    assert [len(f.masks) for f in found] == [5, 0, 3]
    assert sam.segment([photos[2]], [given[2]])[0].masks == found[2].masks
    assert sam.segment([], []) == []


def test_prompts_go_through_in_parts_that_fit(
    sam: Sam, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = _boxes(photos[0], 7)
    (whole,) = sam.segment([photos[0]], [boxes])
    monkeypatch.setattr("pipeline.models.sam._MASK_PIXELS", 2 * photos[0].shape[0] * photos[0].shape[1])
    (embedding,) = sam.embed([photos[0]])
    assert [len(part.logits) for part in sam.draw(embedding, boxes)] == [2, 2, 2, 1]
    (parts,) = sam.segment([photos[0]], [boxes])
    for a, b in zip(whole.masks, parts.masks, strict=True):
        shape = photos[0].shape[:2]
        assert (masks.decode(a, *shape) != masks.decode(b, *shape)).mean() < 1e-4
    assert np.allclose(whole.scores, parts.scores, atol=1e-5)


def test_one_mask_a_prompt_by_option(checkpoint: Path, sam: Sam, photos: list[np.ndarray]) -> None:
    single = Sam(checkpoint, multimask=False)
    (embedding,) = single.embed([photos[0]])
    with torch.inference_mode():
        assert single.decode(embedding, _boxes(photos[0]))[1].shape == (5, 1)
        assert sam.decode(embedding, _boxes(photos[0]))[1].shape == (5, 3)


def test_holes_are_filled_and_specks_removed() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:40, 10:40] = True
    mask[20:23, 20:23] = False  # a hole of 9
    mask[50:52, 60:62] = True  # a speck of 4
    clean = without_small_regions(mask, 10)
    assert clean[20:23, 20:23].all() and not clean[50:52].any() and clean.sum() == 900
    assert (without_small_regions(mask, 4) == mask).all()
    assert without_small_regions(mask, 10_000).sum() > 0  # the largest part stays, whatever is asked


def test_small_regions_are_removed_when_asked(checkpoint: Path, photos: list[np.ndarray]) -> None:
    boxes = _boxes(photos[0])
    (raw,), (clean,) = (Sam(checkpoint, smallest_region=n).segment([photos[0]], [boxes]) for n in (0, 50))
    shape = photos[0].shape[:2]
    for before, after, area in zip(raw.masks, clean.masks, clean.area, strict=True):
        expected = without_small_regions(masks.decode(before, *shape), 50)
        assert (masks.decode(after, *shape) == expected).all() and area == expected.sum()


def test_many_masks_are_encoded_at_once_as_one_by_one() -> None:
    drawn = np.random.default_rng(0).random((300, 13, 17)) > 0.5
    assert masks.encode_many(drawn) == [masks.encode(mask) for mask in drawn]
    assert masks.encode_many(drawn[:0]) == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 700), (900, 3)])
def test_odd_shapes_are_survived(sam: Sam, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    (found,) = sam.segment([image], [np.array([[0.0, 0, shape[1], shape[0]]])])
    assert masks.decode(found.masks[0], *shape).sum() == found.area[0]


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [small.SAM, sam_net.SamConfig(image=64, width=32, depth=1, heads=2, whole=(0,))])
def test_a_checkpoint_s_shapes_say_how_it_is_built(config: sam_net.SamConfig, tmp_path: Path) -> None:
    model = sam_net.build(config)
    torch.save(model.state_dict(), tmp_path / "official.pth")
    loaded, found = sam_net.load(tmp_path / "official.pth")
    assert (found.image, found.heads, found.whole) == (config.image, config.heads, config.whole)
    ours = model.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in loaded.state_dict().items())


def test_official_sizes_are_recognised() -> None:
    for config in (sam_net.VIT_B, sam_net.VIT_L, sam_net.VIT_H):
        with torch.device("meta"):
            state = sam_net.build(config).state_dict()
        assert sam_net.sizes(state) == config


def test_wrong_checkpoints_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = sam_net.read_checkpoint(checkpoint)
    cases = {
        "lacks mask_decoder.iou_token.weight": {k: v for k, v in state.items() if k != "mask_decoder.iou_token.weight"},
        "unknown novelty": state | {"novelty": torch.zeros(1)},
        "holds no SAM": {"other": torch.zeros(1)},
    }
    for words, wrong in cases.items():
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(WeightsError, match=words):
            sam_net.load(tmp_path / "wrong.pth")
    with pytest.raises(WeightsError, match="no checkpoint"):
        sam_net.load(tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all")
        with pytest.raises(WeightsError, match="damaged"):
            sam_net.load(tmp_path / name)


def test_options_change_the_producer_and_unknown_ones_are_refused(checkpoint: Path) -> None:
    from pipeline.models import sam as family

    def chosen(**options: Any) -> foundation.Chosen:
        return foundation.Chosen("segmenter", Checkpoint("s", "", "", str(checkpoint), "", 0, ""), "", options)

    names = {family.producer(chosen(**o)) for o in ({}, {"multimask": False}, {"smallest_region": 9})}
    assert len(names) == 3
    built = family.build(chosen(smallest_region=9))
    assert built.producer in names and built.smallest_region == 9
    with pytest.raises(ConfigError, match="smalest_region") as caught:
        family.producer(chosen(smalest_region=9))
    assert "smallest_region" in caught.value.remedy
