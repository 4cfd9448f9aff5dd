"""Grounding DINO against transformers' implementation and against the package's own predict, on real photos."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.boxes import iou
from pipeline.errors import ConfigError, WeightsError
from pipeline.models import foundation
from pipeline.models import grounding_dino as family
from pipeline.models import grounding_dino_net as net
from pipeline.models.dino_questions import DinoOptions, Questions
from pipeline.models.grounding_dino import GroundingDino, batches, resized
from pipeline.models.roles import Detector
from pipeline.ontology import Class, Ontology
from pipeline.weights import Checkpoint
from tests.pipeline.models import hf_weights, small

pytestmark = pytest.mark.weights

CLASSES = {"tree": ("tree", "tree crown seen from above"), "car": ("car",), "house": ("house", "roof")}
RELATIVE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.dino_checkpoint(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def detector(checkpoint: Path) -> GroundingDino:
    return small.dino(checkpoint, CLASSES, floor=0.0, box_threshold=0.0, text_threshold=0.0)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return small.photos()


def _ours(detector: GroundingDino, photo: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw logits and shares of a photo with the first caption, through our preprocessing."""
    from pipeline.models.grounding_dino import _shown

    height, width = photo.shape[:2]
    pixels = _shown(photo, np.array([0, 0, width, height]), resized(height, width, detector.config))
    with torch.inference_mode():
        features = net.encode_images(detector.network, [detector._normalised(pixels)], detector.config.queries)
        logits, boxes = net.answer(detector.network, features, detector._texts[:1])
    return logits[0], boxes[0]


def test_it_agrees_with_transformers(detector: GroundingDino, photos: list[np.ndarray], record_property: Any) -> None:
    from PIL import Image
    from transformers import GroundingDinoImageProcessorPil

    peer = hf_weights.grounding_dino(detector.network, detector.config)
    edges = {"shortest_edge": detector.config.shorter, "longest_edge": detector.config.longest}
    processor = GroundingDinoImageProcessorPil(size=edges)
    caption = detector.questions.captions[0]
    for photo in photos:
        inputs = processor(images=Image.fromarray(photo), return_tensors="pt")
        assert tuple(inputs["pixel_values"].shape[2:]) == resized(*photo.shape[:2], detector.config)
        with torch.inference_mode():
            theirs = peer(**inputs, input_ids=torch.tensor([caption.tokens]))
        logits, boxes = _ours(detector, photo)
        scale = torch.tensor([photo.shape[1], photo.shape[0]] * 2)
        off = (theirs.logits[0, :, : len(caption.tokens)] - logits).abs().max().item()
        pixels = ((theirs.pred_boxes[0] - boxes) * scale).abs().max().item()
        record_property("logits", off)
        record_property("pixels", pixels)
        assert off <= RELATIVE * logits.abs().max().item()
        assert pixels <= RELATIVE * max(photo.shape)


def test_it_agrees_with_the_package_s_own_predict(detector: GroundingDino, photos: list[np.ndarray]) -> None:
    import groundingdino.datasets.transforms as transforms
    from groundingdino.util.inference import Model, predict
    from PIL import Image

    caption = detector.questions.captions[0]
    edges = transforms.Compose(
        [
            transforms.RandomResize([detector.config.shorter], max_size=detector.config.longest),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    assert Model.preprocess_image is not None
    for photo in photos:
        image, _ = edges(Image.fromarray(photo), None)
        boxes, scores, _ = predict(detector.network, image, caption.text, 0.0, 0.0, device="cpu")
        found = detector.propose([photo])
        best = torch.zeros(len(scores))
        logits, shares = _ours(detector, photo)
        best = logits.sigmoid().max(dim=1).values
        assert torch.allclose(best, scores, rtol=0, atol=1e-6)
        assert torch.allclose(shares, boxes, rtol=0, atol=1e-6)
        # The best box of all prompts together is predict's best, but for words that are no prompt's.
        spans = [i for start, end in caption.spans for i in range(start, end)]
        assert found.scores.max() == pytest.approx(logits.sigmoid()[:, spans].max().item(), abs=1e-6)


def test_a_box_belongs_to_the_prompts_whose_tokens_it_answers(
    detector: GroundingDino, photos: list[np.ndarray]
) -> None:
    logits, shares = _ours(detector, photos[0])
    probability = logits.sigmoid().numpy()
    found = detector.propose(photos[:1])
    (caption,) = detector.questions.captions
    for number, (start, end) in enumerate(caption.spans):
        mine = found.prompt == number
        assert np.allclose(np.sort(found.scores[mine]), np.sort(probability[:, start:end].max(axis=1)), atol=1e-6)
        assert np.allclose(np.sort(found.text[mine]), np.sort(probability[:, start:end].mean(axis=1)), atol=1e-6)
    assert len(found.scores) == len(shares) * len(caption.spans)


def test_equal_shapes_in_a_batch_give_what_each_gives_alone(detector: GroundingDino, photos: list[np.ndarray]) -> None:
    together = detector.detect([*photos, photos[0]])
    for photo, found in zip([*photos, photos[0]], together, strict=True):
        (alone,) = detector.detect([photo])
        assert alone.classes == found.classes
        assert np.allclose(alone.scores, found.scores, atol=1e-5)
        assert np.allclose(alone.boxes, found.boxes, atol=0.05)


def test_unlike_shapes_share_a_batch_behind_masks(
    checkpoint: Path, detector: GroundingDino, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = net.encode_images
    monkeypatch.setattr(
        net, "encode_images", lambda m, images, least: seen.append(len(images)) or encode(m, images, least)
    )
    padded = small.dino(checkpoint, CLASSES, floor=0.0, padding=0.5)
    found = padded.propose(photos)
    assert seen == [len(photos)]
    for number, photo in enumerate(photos):
        boxes = found.boxes[found.image == number]
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        assert (middle >= -1).all() and (middle <= np.array(photo.shape[1::-1]) + 1).all()
    # The package pads and masks alike.
    from groundingdino.util.misc import nested_tensor_from_tensor_list

    images = [padded._normalised(_resize(photo, resized(*photo.shape[:2], padded.config))) for photo in photos]
    nested = nested_tensor_from_tensor_list(images)
    caption = padded.questions.captions[0]
    with torch.inference_mode():
        theirs = padded.network(nested, captions=[caption.text] * len(photos))
        ours = net.answer(padded.network, encode(padded.network, images), [padded._texts[0]] * len(photos))
    assert torch.allclose(theirs["pred_logits"][..., : len(caption.tokens)], ours[0], atol=1e-4)
    assert torch.allclose(theirs["pred_boxes"], ours[1], atol=1e-6)


def _resize(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.array(Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR))


def test_captions_asked_together_answer_as_each_alone(checkpoint: Path, photos: list[np.ndarray]) -> None:
    apart = small.dino(checkpoint, CLASSES, floor=0.0, captions="class")
    assert len(apart.questions.captions) == len(CLASSES)
    every = apart.propose(photos[:2])
    for caption in range(len(CLASSES)):
        one = apart.propose(photos[:2], [[caption]] * 2)
        mine = np.isin(every.prompt, [k for k, (i, _) in enumerate(apart.questions.prompts) if i == caption])
        assert np.array_equal(one.prompt, every.prompt[mine])
        assert np.allclose(one.scores, every.scores[mine], atol=1e-5)


def test_changing_a_class_s_prompt_leaves_the_others_as_they_were(checkpoint: Path, photos: list[np.ndarray]) -> None:
    before = small.dino(checkpoint, CLASSES, captions="class", box_threshold=0.0, text_threshold=0.0)
    after = small.dino(
        checkpoint, CLASSES | {"car": ("lorry",)}, captions="class", box_threshold=0.0, text_threshold=0.0
    )
    assert before.model == after.model and before.producer != after.producer
    keys = [[c.key for c in d.questions.captions] for d in (before, after)]
    assert [a == b for a, b in zip(*keys, strict=True)] == [True, False, True]
    for old, new in zip(before.detect(photos[:1]), after.detect(photos[:1]), strict=True):
        for name in ("tree", "house"):
            kept = [np.array([c == name for c in d.classes]) for d in (old, new)]
            assert np.array_equal(old.boxes[kept[0]], new.boxes[kept[1]])
            assert np.array_equal(old.scores[kept[0]], new.scores[kept[1]])


def test_it_fills_the_role(checkpoint: Path, photos: list[np.ndarray]) -> None:
    found = small.dino(checkpoint, CLASSES, box_threshold=0.5, text_threshold=0.0)
    assert isinstance(found, Detector)
    said = found.detect(photos)
    assert len(said) == len(photos) and found.detect([]) == []
    for one in said:
        assert (one.scores >= 0.5).all() and (np.diff(one.scores) <= 0).all()
        for name in set(one.classes):
            mine = one.boxes[[c == name for c in one.classes]]
            assert (iou(mine, mine)[~np.eye(len(mine), dtype=bool)] <= 0.5 + 1e-6).all()
    assert [t.matched for t in found.vocabulary()] == ["tree", "tree crown seen from above", "car", "house", "roof"]


def test_tiles_are_looked_at_besides_the_whole(checkpoint: Path, photos: list[np.ndarray]) -> None:
    tiled = small.dino(checkpoint, CLASSES, tile=200, overlap=40)
    whole = small.dino(checkpoint, CLASSES)
    assert tiled.model != whole.model
    found = tiled.propose([photos[2]])
    assert len(found.scores) > len(whole.propose([photos[2]]).scores)
    height, width = photos[2].shape[:2]
    assert found.boxes[:, 2].max() > 250 and (found.boxes[:, 2] <= width * 1.5).all()
    assert height == 300


@pytest.mark.parametrize("shape", [(3, 900), (900, 2), (1, 1), (20, 700)])
def test_odd_shapes_are_survived(detector: GroundingDino, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    (found,) = detector.detect([image])
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()


def test_best_scores_are_kept_even_below_the_floor(checkpoint: Path, photos: list[np.ndarray]) -> None:
    strict = small.dino(checkpoint, CLASSES, floor=1.0, box_threshold=0.9999)
    found = strict.propose(photos)
    assert len(found.scores) == len(photos) * len(strict.questions.prompts)
    assert all(not d.classes for d in strict.detect(photos))


# -- checkpoints ----------------------------------------------------------------------------------


def _official(checkpoint: Path, path: Path, **extra: torch.Tensor) -> Path:
    state, _ = net.read_checkpoint(checkpoint)
    torch.save({"model": {f"module.{k}": v for k, v in (state | extra).items()}}, path)
    return path


def test_official_layout_is_read_strictly(
    checkpoint: Path, detector: GroundingDino, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(net._OFFICIAL, small.DINO.embed_dim, small.DINO)
    known = {"label_enc.weight": torch.zeros(3), "bert.embeddings.position_ids": torch.zeros(1, 512)}
    model, config = net.load(_official(checkpoint, tmp_path / "a.pth", **known), detector.questions.words)
    assert config == small.DINO
    ours = detector.network.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())
    with pytest.raises(WeightsError, match="unknown novelty"):
        net.load(_official(checkpoint, tmp_path / "b.pth", novelty=torch.zeros(1)), detector.questions.words)
    state, _ = net.read_checkpoint(checkpoint)
    state.pop("feat_map.bias")
    torch.save(state, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match=r"lacks feat_map\.bias"):
        net.load(tmp_path / "c.pth", detector.questions.words)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, detector: GroundingDino) -> None:
    words = detector.questions.words
    with pytest.raises(WeightsError, match="no checkpoint"):
        net.load(tmp_path / "none.pth", words)
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all")
        with pytest.raises(WeightsError, match="damaged"):
            net.load(tmp_path / name, words)
    torch.save({"other": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds no Grounding DINO"):
        net.load(tmp_path / "b.pth", words)


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("1/0",))


def test_pickled_code_is_never_run(tmp_path: Path, detector: GroundingDino) -> None:
    torch.save({"model": _Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError, match="damaged"):
        net.load(tmp_path / "trap.pth", detector.questions.words)


# -- what is asked --------------------------------------------------------------------------------


def test_rules_carry_each_class_s_thresholds_and_negatives() -> None:
    car = Class("car", ("car",), negatives=("Toy car.",), box_threshold=0.4)
    truck = Class("truck", ("truck", "toy car"), text_threshold=0.3)
    for captions, count in (("packed", 1), ("class", 2)):
        asked = Questions(Ontology((car, truck)), small.tokenizer(), "w", DinoOptions(captions=captions))
        assert len(asked.captions) == count
        told = [(r.class_name, r.prompt, r.negative, r.box_threshold, r.text_threshold) for r in asked.rules]
        assert told == [
            ("car", "car", False, 0.4, 0.1),
            ("car", "toy car", True, 0.4, 0.1),
            ("truck", "truck", False, 0.1, 0.3),
            ("truck", "toy car", False, 0.1, 0.3),
        ]
        assert [asked.prompts[k][1] for k in asked.at] == [r.prompt for r in asked.rules]
    # Asked together, a shared prompt is one question; apart, each class has its own.
    assert [asked.prompts[k][0] for k in asked.at] == [0, 0, 1, 1]


def test_options_are_checked_and_change_the_producer(checkpoint: Path, photos: list[np.ndarray]) -> None:
    def chosen(**options: Any) -> foundation.Chosen:
        return foundation.Chosen("detector", Checkpoint("d", "", "", str(checkpoint), "", 0, ""), "", options)

    ontology = Ontology((Class("car", ("car",)),))
    how: dict[str, Any] = {"ontology": ontology, "nms_iou": 0.5, "name": "dino"}
    asked = [({}, {}), ({"tile": 500}, {}), ({}, {"box_threshold": 0.4}), ({"box_threshold": 0.4}, {"tile": 500})]
    names = {family.producer(chosen(**general), options=own, **how) for general, own in asked}
    assert len(names) == 4 and all(name.startswith("dino@1#") for name in names)
    built = family.build(chosen(box_threshold=0.4), options={"tile": 500}, **how)
    assert built.producer in names and (built.options.box_threshold, built.options.tile) == (0.4, 500)
    for own, words, remedy in (
        ({"box_treshold": 0.3}, "box_treshold", "box_threshold"),
        ({"floor": 2}, "floor", ""),
        ({"tile": 50, "overlap": 60}, "overlap must be smaller", ""),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            family.producer(chosen(), options=own, **how)
        assert remedy in caught.value.remedy


def test_sizes_are_the_package_s_own() -> None:
    import groundingdino.datasets.transforms as transforms
    from PIL import Image

    rng = np.random.default_rng(0)
    for config in (net.SWIN_T, small.DINO):
        for _ in range(40):
            width, height = (int(v) for v in rng.integers(30, 900, 2))
            shown, _ = transforms.resize(Image.new("RGB", (width, height)), None, config.shorter, config.longest)
            assert resized(height, width, config) == (shown.height, shown.width)


def test_batches_hold_like_shapes_within_bounds() -> None:
    rng = np.random.default_rng(1)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 60, (40, 2))] + [(30, 40)] * 9
    for padding in (0.0, 0.2, 1.0):
        found = list(batches(sizes, padding, 9000))
        assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
        for batch in found:
            canvas = max(sizes[i][0] for i in batch) * max(sizes[i][1] for i in batch) * len(batch)
            assert len(batch) == 1 or canvas <= 9000
            assert 1 - sum(sizes[i][0] * sizes[i][1] for i in batch) / canvas <= padding + 1e-12
    assert len(list(batches(sizes, 1.0, 9000))) < len(list(batches(sizes, 0.0, 9000)))
