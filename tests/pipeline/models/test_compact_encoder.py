from __future__ import annotations

import numpy as np
import pytest

from pipeline.models.compact_encoder import (
    CompactEncoder,
    compute_heads,
    load_heads,
    load_mobilenet,
    preprocess,
    producer,
)
from pipeline.models.roles import Encoder
from pipeline.models.text import SentenceEncoder

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def encoder() -> CompactEncoder:
    return CompactEncoder()


def noise(n: int, height: int = 90, width: int = 130) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(n)]


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (224, 224), (31, 57), (1000, 333), (256, 999)])
def test_preprocessing_is_torchvision_s(encoder: CompactEncoder, shape: tuple[int, int]) -> None:
    import torch
    from PIL import Image
    from torchvision import transforms

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    reference = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(Image.fromarray(image))
    ours = encoder.model.normalise(torch.from_numpy(preprocess(image)[None]))[0]
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)


def test_a_very_long_image_takes_little_memory() -> None:
    strip = np.zeros((1, 20_000, 3), np.uint8)
    strip[:, 10_000:] = 255
    seen = preprocess(strip)
    assert seen.shape == (224, 224, 3)
    assert seen[:, :100].max() < 128 < seen[:, 124:].min()


def test_vectors_are_unit_float32_and_fill_the_role(encoder: CompactEncoder) -> None:
    assert isinstance(encoder, Encoder)
    images, texts = encoder.encode_images(noise(3)), encoder.encode_texts(["a photo of a dog", "", "x " * 900])
    for vectors in (images, texts):
        assert vectors.dtype == np.float32 and vectors.shape == (3, 256)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 256)


def test_vectors_depend_neither_on_threads_nor_on_neighbours(encoder: CompactEncoder) -> None:
    import torch

    images, texts = noise(5), ["a dog", "a photo of a red car in the street", "a cat"]
    together, said = encoder.encode_images(images), encoder.encode_texts(texts)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert (encoder.encode_images(images) == together).all()
    finally:
        torch.set_num_threads(threads)
    for i, image in enumerate(images):
        assert (encoder.encode_images([image])[0] == together[i]).all()
    for i, text in enumerate(texts):
        np.testing.assert_allclose(encoder.encode_texts([text])[0], said[i], atol=1e-6)


def test_the_model_has_open_clip_s_calls_and_agrees(encoder: CompactEncoder) -> None:
    import torch

    images = noise(2)
    pixels = encoder.model.normalise(torch.from_numpy(np.stack([preprocess(i) for i in images])))
    tokens = encoder.tokenizer(["a photo of a dog", "a photo of a car"])
    with torch.inference_mode():
        seen, said, scale = encoder.model(pixels, tokens)
        by_image, by_text = encoder.model.get_logits(pixels, tokens)
    np.testing.assert_allclose(seen.numpy(), encoder.encode_images(images), atol=1e-5)
    np.testing.assert_allclose(scale.item(), encoder.temperature, rtol=1e-6)
    torch.testing.assert_close(by_image, scale * seen @ said.T)
    torch.testing.assert_close(by_text, by_image.T)
    assert tokens.dtype == torch.int64 and tokens.shape[0] == 2
    assert encoder.tokenizer("one text", 77).shape == (1, 77)


def test_the_image_head_is_the_classifier_s_own_geometry(encoder: CompactEncoder) -> None:
    """The projection is orthonormal and keeps all that 256 dimensions can keep of the classifier."""
    from scipy.linalg import eigvalsh

    rows = load_mobilenet().classifier[1].weight.detach().double().numpy()
    rows = rows - rows.mean(0)
    basis = encoder.model.image_projection.detach().double().numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(256), atol=1e-5)
    most = eigvalsh(rows @ rows.T, subset_by_index=[744, 999]).sum()
    np.testing.assert_allclose(((rows @ basis) ** 2).sum(), most, rtol=1e-6)


@pytest.mark.slow
def test_the_text_head_is_sklearn_s_ridge_and_the_cache_holds_it(encoder: CompactEncoder) -> None:
    from sklearn.linear_model import Ridge
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    network, texts = load_mobilenet(), SentenceEncoder()
    computed, cached = compute_heads(network, texts), load_heads(network, texts)
    assert computed.keys() == cached.keys()
    for name in cached:
        np.testing.assert_allclose(cached[name], computed[name], atol=1e-6)
    rows = network.classifier[1].weight.detach().double().numpy()
    targets = (rows - rows.mean(0)) @ computed["image_projection"]
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    sentences = texts.encode([f"a photo of a {name}" for name in _IMAGENET_CATEGORIES])
    asked = ["a photo of a puppy", "an old bridge"]
    expected = Ridge(alpha=1.0).fit(sentences, targets).predict(texts.encode(asked))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_texts(asked), expected, atol=1e-4)


def test_real_photos_are_told_apart_by_text(encoder: CompactEncoder) -> None:
    from sklearn.datasets import load_sample_image

    names = ["temple", "flower", "dog", "car", "guitar", "pizza", "ship"]
    photos = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]
    cosines = encoder.encode_images(photos) @ encoder.encode_texts([f"a photo of a {n}" for n in names]).T
    assert [names[i] for i in cosines.argmax(1)] == ["temple", "flower"]


def test_classes_of_imagenet_are_near_their_own_words(encoder: CompactEncoder) -> None:
    """The text of each of 60 classes lies nearest to its own classifier row, mostly."""
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    rows = load_mobilenet().classifier[1].weight.detach().double().numpy()
    projected = (rows - rows.mean(0)) @ encoder.model.image_projection.detach().double().numpy()
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    chosen = np.arange(0, 1000, 17)
    said = encoder.encode_texts([f"a picture showing one {_IMAGENET_CATEGORIES[i]}" for i in chosen])
    assert ((said @ projected[chosen].T).argmax(1) == np.arange(len(chosen))).mean() > 0.9


def test_the_producer_names_model_version_and_recipe(encoder: CompactEncoder) -> None:
    name, _, rest = encoder.producer.partition("@")
    version, _, recipe = rest.partition("#")
    assert name == "compact_encoder" and version and len(recipe) == 8
    assert encoder.producer == producer()
