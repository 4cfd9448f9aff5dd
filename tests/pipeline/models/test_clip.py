from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import encode, ids
from pipeline.compute import Compute
from pipeline.config import samples_root
from pipeline.errors import ConfigError, WeightsError
from pipeline.models import clip, clip_net
from pipeline.models.roles import Encoder
from pipeline.store import Store
from pipeline.vectors import Vectors
from tests.pipeline.models import clip_files
from tests.pipeline.photo_rows import save, speckled, tiny_config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVP_SAMPLES", str(samples_root()))
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "small.safetensors"
    clip_net.save(path, clip_files.random_network(clip_files.small()), clip_files.small())
    return path


@pytest.fixture
def encoder(checkpoint: Path) -> clip.ClipEncoder:
    return clip.ClipEncoder(clip_files.chosen(checkpoint))


def trees() -> list[np.ndarray]:
    """Every photograph of the sample, 400 x 400 to 2299 x 1650 pixels."""
    files = sorted((samples_root() / "trees").rglob("*.png"))
    assert len(files) == 7, "run: cvp samples pull trees"
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


# -- the role -------------------------------------------------------------------------------------


def test_vectors_are_unit_and_fill_the_role(encoder: clip.ClipEncoder) -> None:
    images, texts = [speckled(i) for i in range(11)], ["a photo of a dog", "", "tree " * 200]
    vectors, said = encoder.encode_images(images), encoder.encode_texts(texts)
    assert isinstance(encoder, Encoder) and encoder.dimensions == 64
    assert vectors.shape == (11, 64) and said.shape == (3, 64) and vectors.dtype == said.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([vectors, said]), axis=1), 1, atol=1e-6)
    assert encoder.encode_images([]).shape == encoder.encode_texts([]).shape == (0, 64)
    assert encoder.temperature == pytest.approx(1 / 0.07, rel=1e-5)


def test_the_producer_changes_with_the_file_and_its_settings(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    clip_net.save(other, clip_files.random_network(clip_files.small(), seed=1), clip_files.small())
    names = {
        clip.producer(clip_files.chosen(path, **options))
        for path in (checkpoint, other)
        for options in ({}, {"precision": "bfloat16"}, {"vectors": "float16"})
    }
    assert len(names) == 6 and all(ids.producer_name(n).startswith("clip_") for n in names)


def test_unknown_options_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'precison'"):
        clip.producer(clip_files.chosen(checkpoint, precison="float32"))
    with pytest.raises(ConfigError, match="cannot be 'half'"):
        clip.ClipEncoder(clip_files.chosen(checkpoint, precision="half"))


def test_numbers_that_overflow_are_an_error(encoder: clip.ClipEncoder) -> None:
    import torch

    with torch.no_grad():
        encoder.network.visual.proj.mul_(float("inf"))
    with pytest.raises(WeightsError, match="not finite"):
        encoder.encode_images([speckled(0)])


# -- preprocessing and parity ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (96, 96), (31, 57), (1000, 333), (95, 760)])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"resize_mode": "longest"},
    ],
    ids=lambda how: how.get("resize_mode", "shortest"),
)
def test_preprocessing_is_open_clip_s_bit_by_bit(how: dict[str, Any], shape: tuple[int, int], tmp_path: Path) -> None:
    import torch

    what = clip_files.small(**how)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    theirs = clip_net.preprocess(what)(Image.fromarray(image))
    seen = []
    encoder = clip_files.encoder(tmp_path, what)
    encoder.network.encode_image = lambda images: seen.append(images) or torch.ones(len(images), 64)
    encoder.encode_images([image])
    assert theirs.shape == (3, 96, 96) and torch.equal(seen[0][0], theirs)


def test_a_very_long_image_takes_little_memory(encoder: clip.ClipEncoder) -> None:
    strip = np.zeros((1, 50_000, 3), np.uint8)
    strip[:, 25_000:] = 255
    seen = encoder.prepare(strip)
    assert seen.shape == (96, 96, 3) and seen[:, :40].max() < 128 < seen[:, 56:].min()


@pytest.mark.weights
@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
def test_open_clip_s_own_loader_and_calls_give_the_same(quick: bool, tmp_path: Path) -> None:
    open_clip = clip_net.library()
    import torch

    what = clip_files.small(quick)
    ours = clip_files.encoder(tmp_path, what)
    network = clip_net.build(what)
    open_clip.load_checkpoint(network, str(tmp_path / "small.safetensors"))
    look, words = clip_net.preprocess(what), open_clip.SimpleTokenizer()
    photos, texts = trees(), ["a photo of a tree", "a roof"]
    with torch.inference_mode():
        seen = torch.cat([network.encode_image(look(Image.fromarray(p))[None], normalize=True) for p in photos])
        said = network.encode_text(words(texts), normalize=True)
    np.testing.assert_allclose(ours.encode_images(photos), seen.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.encode_texts(texts), said.numpy(), atol=1e-6)


def against_transformers(what: clip_net.Design, folder: Path) -> dict[str, float]:
    """Largest absolute differences from transformers' CLIPModel with the same weights, on real photos and texts."""
    import torch
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    network = clip_files.random_network(what)
    clip_net.save(folder / "net.safetensors", network, what)
    ours = clip.ClipEncoder(clip_files.chosen(folder / "net.safetensors"))
    theirs, words = clip_files.transformers_model(network, what), clip_files.transformers_tokenizer()
    size = what.config["vision_cfg"]["image_size"]
    look = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    # Where an odd number of rows or columns is cropped, transformers leaves the odd one on the other side
    # than torchvision, as open_clip has it; one more or less makes it even.
    photos = [_evenly_cropped(photo, size) for photo in trees()]
    texts = ["a photo of a dog", "tree crowns, seen from above: 3!", "the worker's naïve café", "tree " * 200]
    given = words(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    tokens = clip_net.tokenizer(what)(texts)
    assert torch.equal(tokens, given.input_ids * given.attention_mask)
    pixels = torch.cat([look(images=Image.fromarray(photo), return_tensors="pt")["pixel_values"] for photo in photos])
    seen = torch.stack([clip_net.preprocess(what)(Image.fromarray(photo)) for photo in photos])
    with torch.inference_mode():
        said = theirs(input_ids=given.input_ids, attention_mask=given.attention_mask, pixel_values=pixels)
    images, sentences = ours.encode_images(photos), ours.encode_texts(texts)
    logits = ours.temperature * images @ sentences.T
    return {
        "pixels": float((pixels - seen).abs().max()),
        "images": float(np.abs(images - said.image_embeds.numpy()).max()),
        "texts": float(np.abs(sentences - said.text_embeds.numpy()).max()),
        "logits": float(np.abs(logits - said.logits_per_image.numpy()).max() / np.abs(logits).max()),
    }


def _evenly_cropped(photo: np.ndarray, size: int) -> np.ndarray:
    short, long = sorted(photo.shape[:2])
    while (int(size * long / short) - size) % 2:
        long -= 1
    return photo[: min(photo.shape[0], long), : min(photo.shape[1], long)]


@pytest.mark.weights
@pytest.mark.parametrize("quick", [False, True], ids=["gelu", "quick_gelu"])
def test_transformers_with_the_same_weights_agrees(quick: bool, tmp_path: Path) -> None:
    found = against_transformers(clip_files.small(quick), tmp_path)
    assert found["pixels"] == 0 and max(found.values()) < 2e-6, found


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("tag", ["laion2b_s34b_b79k", "openai"])
def test_transformers_agrees_at_full_size(tag: str, tmp_path: Path) -> None:
    found = against_transformers(clip_net.design(f"ViT-B-32/{tag}"), tmp_path)
    print(f"\nViT-B-32/{tag}, largest differences: " + ", ".join(f"{k} {v:.1e}" for k, v in found.items()))
    assert found["pixels"] == 0 and max(found.values()) < 5e-6, found


@pytest.mark.weights
def test_the_one_difference_of_preprocessing_is_one_pixel_of_cropping(tmp_path: Path) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    photo = trees()[0][:97, :150]
    ours = clip_files.encoder(tmp_path).prepare(photo)
    look = CLIPImageProcessorPil(
        size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, do_rescale=False, do_normalize=False
    )
    theirs = look(images=Image.fromarray(photo), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert int(96 * 150 / 97) - 96 == 52
    np.testing.assert_array_equal(ours, theirs)
    odd = photo[:, :149]
    assert (int(96 * 149 / 97) - 96) % 2
    theirs = look(images=Image.fromarray(odd), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    ours = clip_files.encoder(tmp_path).prepare(odd)
    assert (ours[:, :-1] == theirs[:, 1:]).all() or (ours[:, 1:] == theirs[:, :-1]).all()


# -- strict loading -------------------------------------------------------------------------------


def written(path: Path, change: Any) -> Path:
    """A state dict of the small model, changed, as torch writes it."""
    import torch

    state = dict(clip_files.random_network(clip_files.small()).state_dict())
    torch.save(change(state), path)
    return path


@pytest.fixture
def small_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip knows the small model as `small`."""
    import json

    open_clip = clip_net.library()
    (tmp_path / "small.json").write_text(json.dumps(clip_files.SMALL))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / "small.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {k: v.half() for k, v in state.items()},
        lambda state: {**state, "logit_scale": state["logit_scale"].reshape(1)},
    ],
    ids=["plain", "of a training", "half", "scale of one"],
)
def test_layouts_that_open_clip_writes_are_read(change: Any, tmp_path: Path, small_by_name: None) -> None:
    path = written(tmp_path / "net.pt", change)
    encoder = clip.ClipEncoder(clip_files.chosen(path, "small"))
    (tmp_path / "b").mkdir()
    expected = clip_files.encoder(tmp_path / "b").encode_images([speckled(0)])
    np.testing.assert_allclose(encoder.encode_images([speckled(0)]), expected, atol=2e-3)


def without(name: str) -> Any:
    return lambda state: {k: v for k, v in state.items() if k != name}


def longer(state: dict[str, Any]) -> dict[str, Any]:
    import torch

    grid = state["visual.positional_embedding"]
    return {**state, "visual.positional_embedding": torch.cat([grid, grid])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("visual.proj"), "visual.proj is missing"),
        (without("logit_scale"), "logit_scale is missing"),
        (lambda state: {**state, "extra.weight": state["visual.proj"]}, "extra.weight is left over"),
        (longer, r"visual.positional_embedding is \(74, 128\), not \(37, 128\)"),
        (lambda state: {"weights": 3}, "holds no state dict"),
        (lambda state: Path("/"), "cannot read the checkpoint"),
    ],
)
def test_anything_but_the_whole_model_is_refused(
    change: Any, message: str, tmp_path: Path, small_by_name: None
) -> None:
    path = written(tmp_path / "net.pt", change)
    with pytest.raises(WeightsError, match=message):
        _ = clip.ClipEncoder(clip_files.chosen(path, "small")).network


def test_what_a_file_holds_must_be_said(tmp_path: Path) -> None:
    path = written(tmp_path / "net.pt", lambda state: state)
    with pytest.raises(WeightsError, match="does not say what it holds") as caught:
        clip.ClipEncoder(clip_files.chosen(path))
    assert "architecture" in caught.value.remedy
    with pytest.raises(WeightsError, match="no model 'ViT-B-33'"):
        clip.ClipEncoder(clip_files.chosen(path, "ViT-B-33"))
    from pipeline.models.probe import Probe

    probe = tmp_path / "probe.safetensors"
    Probe(("a", "b"), np.zeros((2, 3), np.float32), np.zeros(2, np.float32), "e").save(probe)
    with pytest.raises(WeightsError, match="is no CLIP model"):
        clip.ClipEncoder(clip_files.chosen(probe))


def test_a_tag_decides_activation_and_preprocessing() -> None:
    assert clip_net.design("ViT-B-32/openai").config["quick_gelu"]
    assert not clip_net.design("ViT-B-32/laion2b_s34b_b79k").config["quick_gelu"]
    assert clip_net.design("ViT-B-16-SigLIP/webli").preprocess["resize_mode"] == "squash"
    with pytest.raises(WeightsError, match="no weights 'opnai'"):
        clip_net.design("ViT-B-32/opnai")


# -- texts ----------------------------------------------------------------------------------------


def test_texts_asked_before_need_no_network(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = clip.ClipEncoder(clip_files.chosen(checkpoint))
    said = first.encode_texts(["a dog", "a cat", "a dog"])
    np.testing.assert_array_equal(said[0], said[2])
    second = clip.ClipEncoder(clip_files.chosen(checkpoint))
    monkeypatch.setattr(clip_net, "load", lambda *_: pytest.fail("the network was loaded"))
    np.testing.assert_array_equal(second.encode_texts(["a cat", "a dog"]), said[[1, 0]])
    assert second.temperature == first.temperature
    other = clip.ClipEncoder(clip_files.chosen(checkpoint, vectors="float16"))
    with pytest.raises(pytest.fail.Exception):
        other.encode_texts(["a dog"])


def test_a_damaged_cache_of_texts_is_made_again(checkpoint: Path, tmp_path: Path) -> None:
    said = clip.ClipEncoder(clip_files.chosen(checkpoint)).encode_texts(["a dog"])
    (path,) = (tmp_path / "home" / "cache" / "texts").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    np.testing.assert_array_equal(clip.ClipEncoder(clip_files.chosen(checkpoint)).encode_texts(["a dog"]), said)


@pytest.mark.network
def test_towers_and_tokenizers_of_the_hub_are_pulled_and_then_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, RobertaConfig

    from pipeline import weights
    from tests.pipeline.weights.server import serving

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3, "dog": 4, "<unk>": 5}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>").save_pretrained(tmp_path / "t")
    RobertaConfig(vocab_size=6, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                  pad_token_id=0).save_pretrained(tmp_path / "t")  # fmt: skip
    text = {"hf_model_name": "org/words", "hf_tokenizer_name": "org/words", "hf_pooler_type": "mean_pooler"}
    what = clip_net.Design(
        "worded", {**clip_files.SMALL, "quick_gelu": False, "text_cfg": {**text, "context_length": 9}}
    )
    names = {*what.tokenizer_files, *what.text_files}
    assert names == {"tokenizer.json", "tokenizer_config.json", "config.json"}
    monkeypatch.setenv("CVP_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(WeightsError, match=r"cvp models pull hf-hub:org/words/config\.json"):
        clip_net.build(what)
    with serving({f"/org/words/resolve/main/{n}": (tmp_path / "t" / n).read_bytes() for n in names}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for reference in {*what.tokenizer_files.values(), *what.text_files.values()}:
            weights.pull(reference)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    network = clip_files.random_network(what)
    clip_net.save(tmp_path / "net.safetensors", network, what)
    encoder = clip.ClipEncoder(clip_files.chosen(tmp_path / "net.safetensors"))
    assert set(clip.companions(clip_files.chosen(tmp_path / "net.safetensors"))) == {
        f"hf-hub:org/words/{n}" for n in names
    }
    tokens = clip_net.tokenizer(what)(["a dog", "a"])
    assert tokens.tolist() == [[3, 4] + [0] * 7, [3] + [0] * 8]
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_texts(["a dog"]), axis=1), 1, atol=1e-6)


# -- through the stages ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_go_to_lancedb_as_they_are_and_are_found(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    (tmp_path / "photos").mkdir()
    images = save(tmp_path / "photos", [speckled(i) for i in range(21)])
    given = {"encoder": {"checkpoint": str(checkpoint), "options": {"vectors": dtype}}}
    config = tiny_config(profile="foundation", models=given, curation={"patches": 2})
    store = Store(str(tmp_path / "store"))
    rows = pa.concat_tables(encode.embed(images, config, Compute(batch_size=8), store.staging("embeddings", "b", "f")))
    assert rows.num_rows == 21 * 5 and rows.schema.field("vector").type.value_type == dtype.replace(
        "float16", "halffloat"
    ).replace("float32", "float")
    kept = Vectors(store.uri)
    encoder = rows.column("encoder")[0].as_py()
    kept.replace_batch("b", encoder, [rows])
    names, vectors = kept.fetch(images.column("image_id").to_pylist(), encoder)
    assert names == images.column("image_id").to_pylist() and vectors.dtype == np.float32
    expected = clip.ClipEncoder(clip_files.chosen(checkpoint)).encode_images([speckled(i) for i in range(21)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6 if dtype == "float32" else 1e-3)
    found = kept.search(expected[4], encoder, 3)
    order = np.argsort(-(vectors @ expected[4]), kind="stable")[:3]
    assert found.column("image_id").to_pylist() == [names[i] for i in order]
