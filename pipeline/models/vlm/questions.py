"""What a vision-language model is asked, what counts as an answer, and what several answers come to."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

Kind = Literal["label", "count", "describe"]
Box = tuple[float, float, float, float]

STANDARD = "standard"
_BOXED = (
    'A red box is drawn on this photograph. Does it enclose one whole "{class_name}" ({words})? Answer yes if the '
    "thing in the box is one and the box fits it; no if it is something else, only a part, several at once, or "
    "nothing; unsure if it cannot be told. First say in a few words what is in the box."
)
_WHOLE = (
    'Is "{class_name}" ({words}) the right label for this photograph, of these: {classes}? Answer yes, no, or unsure '
    "if it cannot be told. First say in a few words what there is to be seen."
)
_COUNT = (
    'How many "{class_name}" ({words}) are on this photograph? Count each one that can be seen, partly hidden ones '
    "too. First say in a few words where they are, then give the number; 0 if there are none."
)
_DESCRIBE = (
    "These photographs have something in common in which they differ from others of their kind. Describe in one or "
    "two sentences what they show and what they share: place, light, weather, distance, angle, condition of the "
    "things. Then give up to six short tags."
)


WORDINGS = (_BOXED, _WHOLE, _COUNT, _DESCRIBE)


@dataclass(frozen=True)
class View:
    """What is shown: a crop around a box, a whole image, or several images side by side.

    Attributes:
        images: ids of `images` rows. box: xyxy pixels, drawn; None for the whole image.
        edge: pixels of the longer edge at most. context: how much of the box's sides is shown around it.
    """

    images: tuple[str, ...]
    box: Box | None = None
    edge: int = 768
    context: float = 0.5


@dataclass(frozen=True)
class Question:
    """One question about one picture. Equal questions have equal answers, paid for once."""

    kind: Kind
    text: str
    view: View

    def key(self, settings: Any, attempt: int) -> str:
        """Address of the answer to one attempt, by everything that it depends on."""
        content = json.dumps([asdict(self), settings, attempt], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def label_text(prompt: str | None, class_name: str, words: Sequence[str], classes: Sequence[str], boxed: bool) -> str:
    """The label question in words; `prompt` is a user's wording, None for the built-in one."""
    return _filled(prompt or (_BOXED if boxed else _WHOLE), class_name, words, classes)


def count_text(class_name: str, words: Sequence[str]) -> str:
    """The counting question in words."""
    return _filled(_COUNT, class_name, words, ())


def describe_text() -> str:
    """What is asked of several images of a slice."""
    return _DESCRIBE


def _filled(text: str, class_name: str, words: Sequence[str], classes: Sequence[str]) -> str:
    known = {"class_name": class_name, "words": ", ".join(words), "classes": ", ".join(classes)}
    # Not str.format: other braces in a user's wording are text.
    return re.sub(r"\{(class_name|words|classes)\}", lambda found: known[found[1]], text)


# -- answers --------------------------------------------------------------------------------------


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LabelReply(_Reply):
    seen: str
    answer: Literal["yes", "no", "unsure"]


class CountReply(_Reply):
    seen: str
    count: int


class DescribeReply(_Reply):
    description: str
    tags: list[str]


_REPLIES: dict[Kind, type[_Reply]] = {"label": LabelReply, "count": CountReply, "describe": DescribeReply}
_MOST = 100_000  # of anything on one photograph
_LONGEST = 500  # characters of a model's words that are kept


def reply_schema(kind: Kind) -> dict[str, Any]:
    """JSON schema of the answer, strict: every key is required, and there are no others."""
    found = _REPLIES[kind].model_json_schema()
    for part in found["properties"].values():
        part.pop("title", None)
    return {key: value for key, value in found.items() if key not in ("title", "description")}


def parse(kind: Kind, text: str) -> tuple[str, str] | None:
    """(answer, the model's words beside it) of a reply; None where it is not what was asked for."""
    try:
        found = _REPLIES[kind].model_validate_json(_unfenced(text))
    except ValidationError:
        return None
    if isinstance(found, LabelReply):
        return found.answer, found.seen[:_LONGEST]
    if isinstance(found, CountReply):
        return (str(found.count), found.seen[:_LONGEST]) if 0 <= found.count <= _MOST else None
    assert isinstance(found, DescribeReply)
    return found.description[:_LONGEST], ", ".join(found.tags)[:_LONGEST]


def _unfenced(text: str) -> str:
    """JSON out of the Markdown fence that models without structured output like to put around it."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return fenced[1] if fenced else text


State = Literal["answered", "malformed", "refused", "declined"]


@dataclass(frozen=True)
class Reply:
    """What one attempt came to, once it has been paid for.

    Attributes:
        state: answered; malformed (not what was asked for); refused (by the model); declined (the endpoint
            would not take the request, at no cost).
        value: the answer; None unless answered. words: the model's own, or why there is no answer.
        sent, written: tokens. seconds: from sending to receiving.
    """

    state: State
    value: str | None
    words: str
    sent: int
    written: int
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """What the attempts at one question say together.

    Attributes:
        answer: of labels what more than half of all attempts say, of counts the middle one; None where there
            is none. agreement: share of all attempts that say so.
    """

    answer: str | None
    agreement: float
    words: str


def verdict(kind: Kind, replies: Sequence[Reply]) -> Verdict:
    """The majority. What is no answer counts against it."""
    said = [r for r in replies if r.value is not None]
    if not said:
        return Verdict(None, 0.0, replies[0].words if replies else "")
    if kind == "count":
        chosen: str | None = str(median_low(int(r.value or 0) for r in said))
    else:
        chosen = Counter(r.value for r in said).most_common(1)[0][0]
    votes = [r for r in said if r.value == chosen]
    if kind == "label" and 2 * len(votes) <= len(replies):
        return Verdict(None, len(votes) / len(replies), "no majority")
    return Verdict(chosen, len(votes) / len(replies), votes[0].words)
