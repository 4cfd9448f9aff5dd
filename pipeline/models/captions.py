"""Prompts packed into captions, as Grounding DINO reads them: "hard hat. person. road cone.".

Every prompt is tokenised by itself, so the tokens that stand for it are known by construction, and a box
is given to the prompts whose tokens it answers, never by comparing phrases as strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, WeightsError
from pipeline.ids import fingerprint

LIMIT = 256  # tokens of a caption, its two marks included: what the model was made for
_MARKS = ("[CLS]", "[SEP]", ".", "?")  # what the model takes for ends of phrases


@dataclass(frozen=True)
class Caption:
    """Prompts that are asked together.

    Attributes:
        prompts: as the model reads them.
        tokens: BERT's ids, from [CLS] to [SEP].
        spans: for each prompt, the positions of its first token and after its last.
    """

    prompts: tuple[str, ...]
    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def text(self) -> str:
        return ". ".join(self.prompts) + "."

    @property
    def key(self) -> str:
        """Names what is asked: equal for equal tokens in equal places."""
        return fingerprint(self.tokens, self.spans)

    def positions(self) -> NDArray[np.int64]:
        """(t,) place of each token in its phrase; phrases end with their full stop."""
        places = np.zeros(len(self.tokens), np.int64)
        for start, end in self.spans:
            places[start : end + 1] = np.arange(end + 1 - start)
        return places

    def attention(self) -> NDArray[np.bool_]:
        """(t, t) which token sees which: those of one phrase, so that phrases do not colour each other."""
        phrase = -np.arange(1, len(self.tokens) + 1)
        for number, (start, end) in enumerate(self.spans):
            phrase[start : end + 1] = number
        same: NDArray[np.bool_] = phrase[:, None] == phrase[None, :]
        return same


class WordPieces:
    """BERT's tokeniser, from a file `tokenizer.json` or `vocab.txt`, or the folder that holds one.

    Raises:
        WeightsError: there is neither, or it is not BERT's.
    """

    def __init__(self, path: Path) -> None:
        self._tokenizer = _load(path)
        marks = [self._tokenizer.token_to_id(mark) for mark in _MARKS]
        if None in marks:
            missing = _MARKS[marks.index(None)]
            raise WeightsError(f"the vocabulary {path} has no {missing!r}", "use the tokeniser of bert-base-uncased")
        self.marks: tuple[int, ...] = tuple(marks)
        self.start, self.end, self.stop, _ = self.marks
        self.size = int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> tuple[int, ...]:
        """BERT's ids of a text, without marks around it."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def as_transformers(self) -> Any:
        """The same tokeniser with the calls of transformers'."""
        from transformers import PreTrainedTokenizerFast

        marks = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
        return PreTrainedTokenizerFast(tokenizer_object=self._tokenizer, **marks)


def _load(path: Path) -> Any:
    import tokenizers

    for file in (path, path / "tokenizer.json", path / "vocab.txt"):
        if not file.is_file():
            continue
        try:
            if file.suffix == ".txt":
                return tokenizers.BertWordPieceTokenizer(str(file), lowercase=True)._tokenizer
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:
            raise WeightsError(f"{file} is not a tokeniser: {error}", "pull it again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    raise WeightsError(f"there is no tokenizer.json or vocab.txt at {path}", "run: cvp models pull foundation")


def clean(prompt: str) -> str:
    """A prompt as the model reads it: lower case, single spaces, and without the marks that end phrases."""
    return " ".join(prompt.lower().replace(".", " ").replace("?", " ").split())


def pack(groups: Iterable[Sequence[str]], words: WordPieces, limit: int = LIMIT) -> list[Caption]:
    """Captions that hold every prompt once, in order.

    A group (one class's prompts) is kept in one caption where it fits into one; a new caption begins
    when the next group would not fit any more.

    Args:
        groups: cleaned prompts.
        limit: most tokens a caption.

    Raises:
        ConfigError: a prompt is empty, too long alone, or spells one of BERT's marks.
    """
    captions: list[Caption] = []
    room = limit - 2
    waiting: list[tuple[str, tuple[int, ...]]] = []
    seen: set[str] = set()

    def used(parts: Sequence[tuple[str, tuple[int, ...]]]) -> int:
        return sum(len(ids) + 1 for _, ids in parts)

    for group in groups:
        fresh = [p for p in dict.fromkeys(group) if p not in seen]
        seen.update(fresh)
        parts = [(prompt, _tokens(prompt, words, room - 1)) for prompt in fresh]
        if waiting and used(waiting) + used(parts) > room:
            captions.append(_caption(waiting, words))
            waiting = []
        for part in parts:
            if waiting and used(waiting) + used([part]) > room:
                captions.append(_caption(waiting, words))
                waiting = []
            waiting.append(part)
    return [*captions, _caption(waiting, words)] if waiting else captions


def _tokens(prompt: str, words: WordPieces, longest: int) -> tuple[int, ...]:
    ids = words.encode(prompt)
    if not ids:
        raise ConfigError(f"the prompt {prompt!r} has no words", "write a word or leave it out")
    if set(ids) & set(words.marks):
        raise ConfigError(f"the prompt {prompt!r} spells a mark of the text encoder", "write it in plain words")
    if len(ids) > longest:
        raise ConfigError(f"the prompt {prompt[:60]!r}… has {len(ids)} tokens", f"shorten it to {longest}")
    return ids


def _caption(parts: Sequence[tuple[str, tuple[int, ...]]], words: WordPieces) -> Caption:
    tokens, spans = [words.start], []
    for _, ids in parts:
        spans.append((len(tokens), len(tokens) + len(ids)))
        tokens += [*ids, words.stop]
    return Caption(tuple(prompt for prompt, _ in parts), (*tokens, words.end), tuple(spans))
