"""BGE-small sentence vectors: the text tower of the compact encoder, and word similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import weights
from pipeline.models.onnx import session
from pipeline.models.threads import each_on_one_thread

_LONGEST = 512  # tokens; BERT's positions end there
_PAD = 0


class SentenceEncoder:
    """Texts to (n, 384) float32 unit vectors by the first token's state (BGE's own pooling).

    Raises:
        WeightsError: the compact checkpoints have not been pulled.
    """

    dimensions = 384

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(weights.resolve("bge_small_en_tokenizer")))
        self._tokenizer.enable_truncation(_LONGEST)
        self._session = session(weights.resolve("bge_small_en"))

    def tokenize(self, texts: str | Sequence[str], context_length: int | None = None) -> Any:
        """(n, length) int64 torch tensor of token ids, padded with 0, as an open_clip tokenizer gives."""
        import torch

        lines = [self._tokenizer.encode(text).ids for text in ([texts] if isinstance(texts, str) else texts)]
        length = context_length or max((len(line) for line in lines), default=0)
        tokens = torch.full((len(lines), length), _PAD, dtype=torch.int64)
        for row, line in zip(tokens, lines, strict=True):
            row[: len(line[:length])] = torch.tensor(line[:length])
        return tokens

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 384) float32 unit vectors."""
        return self._encode([self._tokenizer.encode(text).ids for text in texts])

    def encode_tokens(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, 384) float32 unit vectors of (n, length) padded token ids."""
        return self._encode([row[row != _PAD].tolist() for row in tokens])

    def _encode(self, lines: Sequence[list[int]]) -> NDArray[np.float32]:
        vectors = np.zeros((len(lines), self.dimensions), np.float32)
        for vector, state in zip(vectors, each_on_one_thread(self._state, lines), strict=True):
            vector[:] = state / np.linalg.norm(state)
        return vectors

    def _state(self, line: list[int]) -> NDArray[np.float32]:
        # One text a call: the int8 model scales activations by the batch's range, so that a text's
        # vector would depend on its neighbours.
        tokens = np.array([line], np.int64)
        ones, zeros = np.ones_like(tokens), np.zeros_like(tokens)
        feed = {"input_ids": tokens, "attention_mask": ones, "token_type_ids": zeros}
        state: NDArray[np.float32] = self._session.run(None, feed)[0][0, 0]
        return state
