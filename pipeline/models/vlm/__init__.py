"""Vision-language models behind an OpenAI-compatible endpoint: the role `Verifier`.

`questions` are what is asked and what counts as an answer, `picture` is what they show, `endpoint` sends one,
`answers` keeps all that was paid for, `budget` says what may still be spent, and `verifier` asks many.
"""

from pipeline.models.vlm.answers import Answers
from pipeline.models.vlm.budget import Tokens
from pipeline.models.vlm.endpoint import EndpointError
from pipeline.models.vlm.questions import STANDARD, Question, Verdict, View, count_text, describe_text, label_text
from pipeline.models.vlm.verifier import Asked, Verifier, producer

__all__ = [
    "STANDARD",
    "Answers",
    "Asked",
    "EndpointError",
    "Question",
    "Tokens",
    "Verdict",
    "Verifier",
    "View",
    "count_text",
    "describe_text",
    "label_text",
    "producer",
]
