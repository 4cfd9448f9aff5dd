"""Captions hold every prompt once, within the limit, and know their tokens: against the whole text tokenised."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline.errors import ConfigError, WeightsError
from pipeline.models.captions import LIMIT, WordPieces, clean, pack
from pipeline.torch_compat import import_torchvision
from tests.pipeline.models.small import tokenizer

pytestmark = pytest.mark.weights

WORDS = st.text("abcdefghijklmnopqrstuvwxyz äéñ-'/&ßżж中", min_size=1, max_size=24)
GROUPS = st.lists(st.lists(WORDS, min_size=1, max_size=8), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def words() -> WordPieces:
    return WordPieces(tokenizer())


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, limit=st.sampled_from([40, 64, LIMIT]))
def test_every_prompt_is_asked_once_within_the_limit(words: WordPieces, groups: list[list[str]], limit: int) -> None:
    cleaned = [[clean(p) for p in group] for group in groups]
    assume(all(words.encode(p) and len(words.encode(p)) <= limit - 3 for group in cleaned for p in group))
    captions = pack(cleaned, words, limit)
    asked = [prompt for caption in captions for prompt in caption.prompts]
    assert asked == list(dict.fromkeys(p for group in cleaned for p in group))
    whole = Tokenizer.from_file(str(tokenizer()))
    whole.no_truncation()
    for caption in captions:
        assert len(caption.tokens) <= limit
        assert list(caption.tokens) == whole.encode(caption.text).ids
        for (start, end), prompt in zip(caption.spans, caption.prompts, strict=True):
            assert caption.tokens[start:end] == words.encode(prompt)


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS)
def test_places_and_attention_are_the_package_s_own(words: WordPieces, groups: list[list[str]]) -> None:
    import_torchvision()
    from groundingdino.models.GroundingDINO.bertwarper import generate_masks_with_special_tokens_and_transfer_map

    cleaned = [[clean(p) for p in group] for group in groups]
    assume(all(words.encode(p) for group in cleaned for p in group))
    for caption in pack(cleaned, words):
        tokens = {"input_ids": torch.tensor([caption.tokens])}
        attention, places, _ = generate_masks_with_special_tokens_and_transfer_map(tokens, list(words.marks), None)
        assert np.array_equal(caption.attention(), attention[0].numpy())
        assert np.array_equal(caption.positions(), places[0].numpy())


def test_a_class_s_prompts_stay_together_where_they_fit(words: WordPieces) -> None:
    groups = [["one two three", "four five"], ["six seven", "eight nine"]]
    first, second = pack(groups, words, 14)
    assert first.prompts == ("one two three", "four five")
    assert second.prompts == ("six seven", "eight nine")


def test_marks_that_end_phrases_cannot_hide_in_prompts(words: WordPieces) -> None:
    assert clean("  St. Bernard? ") == "st bernard"
    with pytest.raises(ConfigError, match="no words"):
        pack([[clean(" .?")]], words)
    with pytest.raises(ConfigError, match="mark"):
        pack([["[SEP]"]], words)
    with pytest.raises(ConfigError, match="shorten"):
        pack([["word " * 300]], words)


def test_a_missing_or_foreign_tokeniser_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no tokenizer\.json"):
        WordPieces(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="not a tokeniser"):
        WordPieces(tmp_path)


def test_a_vocabulary_file_gives_the_same_ids(tmp_path: Path, words: WordPieces) -> None:
    known = Tokenizer.from_file(str(tokenizer())).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(known, key=known.__getitem__)), encoding="utf-8")
    other = WordPieces(tmp_path)
    for text in ("a yellow hard-hat", "Größe", "naïve café", "x" * 120):
        assert other.encode(clean(text)) == words.encode(clean(text))
