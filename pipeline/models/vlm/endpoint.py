"""One request to an OpenAI-compatible endpoint, and what came of it. https://platform.openai.com/docs/api-reference/chat

The key comes from the environment and goes nowhere but into the header of requests to the configured address:
redirects are not followed, proxies are not used on this machine, and no error tells more than the endpoint's own
words, with the key taken out of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.config import VerificationConfig, is_private
from pipeline.errors import ConfigError, PipelineError
from pipeline.models.vlm.budget import Tokens
from pipeline.models.vlm.questions import Question, Reply, State, parse, reply_schema

_WORDS = 300  # characters of the endpoint's own words that are kept
_ENVELOPE = 400  # tokens around the text: roles, names of keys, and how to answer
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_DECLINED = {400, 413, 415, 422}


class EndpointError(PipelineError):
    """The endpoint answers no question at all."""

    exit_code = 6


@dataclass(frozen=True)
class Fault:
    """A request that came to nothing.

    Attributes:
        kind: again (it may be sent again), or stop (no other will fare better).
        charged: whether the endpoint may have charged for it.
        wait: seconds that the endpoint asks to wait; None where it does not.
    """

    kind: Literal["again", "stop"]
    words: str
    charged: bool = False
    wait: float | None = None


class Endpoint:
    """A configured endpoint. Use it within `async with`.

    Raises:
        ConfigError: the environment variable that should hold the key does not.
    """

    def __init__(self, config: VerificationConfig) -> None:
        self._config = config
        self._key = _key(config)

    async def __aenter__(self) -> Endpoint:
        import openai

        config = self._config
        host = urlsplit(config.base_url).hostname or ""
        http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, trust_env=not is_private(host), timeout=config.timeout
        )
        # What the environment says of other accounts is nobody's business here.
        self._headers: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        if not self._key:
            self._headers["Authorization"] = openai.Omit()
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=config.timeout,
            http_client=http,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    def worst(self, question: Question) -> Tokens:
        """The most tokens that a question may cost: no token is shorter than a byte."""
        text = question.text + json.dumps(reply_schema(question.kind))
        return Tokens(len(text.encode()) + _ENVELOPE + self._config.image_tokens, self._config.output_tokens)

    async def send(self, question: Question, picture: bytes, key: str) -> Reply | Fault:
        """Ask once.

        Args:
            picture: JPEG. key: names the request, so that an endpoint that knows it again need not charge twice.
        """
        import openai

        started = time.monotonic()
        try:
            async with asyncio.timeout(self._config.timeout):
                raw = await self._client.chat.completions.with_raw_response.create(
                    **self._body(question, picture), extra_headers=self._headers | {"Idempotency-Key": key}
                )
            content = json.loads(raw.http_response.content)
        except (TimeoutError, openai.APITimeoutError):
            return Fault("again", f"no answer within {self._config.timeout:g} s", charged=True)
        except openai.APIStatusError as error:
            return self._status(error, time.monotonic() - started)
        except openai.APIConnectionError as error:
            return _connection(error)
        except (openai.OpenAIError, ValueError):
            return Fault("again", "its answer is not JSON", charged=True)
        return self._reply(question, content, time.monotonic() - started)

    def _body(self, question: Question, picture: bytes) -> dict[str, Any]:
        config, schema = self._config, reply_schema(question.kind)
        text = question.text
        if config.structured != "json_schema":
            text += f"\n\nAnswer with one JSON object of this schema and nothing else: {json.dumps(schema)}"
        uri = "data:image/jpeg;base64," + base64.b64encode(picture).decode("ascii")
        body: dict[str, Any] = {
            "model": config.model,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": uri}}],
                }
            ],
            config.limit_by: config.output_tokens,
        }
        if config.structured == "json_schema":
            named = {"name": question.kind, "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif config.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        return body

    def _reply(self, question: Question, content: Any, seconds: float) -> Reply | Fault:
        try:
            choice = content["choices"][0]
            message, why = choice["message"], choice.get("finish_reason")
            text, refusal = message.get("content"), message.get("refusal")
        except (LookupError, TypeError, AttributeError):
            return Fault("again", "its answer is no chat completion", charged=True)
        used = _usage(content) or self.worst(question)
        state: State
        if refusal or why == "content_filter":
            state, value, words = "refused", None, str(refusal or "stopped by its content filter")
        else:
            found = parse(question.kind, text) if isinstance(text, str) else None
            if found:
                state, (value, words) = "answered", found
            else:
                cut = "cut off at output_tokens: " if why == "length" else ""
                state, value, words = "malformed", None, f"{cut}{text!r}"
        return Reply(state, value, self._clean(words), used.sent, used.written, round(seconds, 3))

    def _status(self, error: Any, seconds: float) -> Reply | Fault:
        code, words = error.status_code, self._clean(re.sub(r"^Error code: \d+( - )?", "", str(error.message)))
        if code == 429 and error.code == "insufficient_quota":
            return Fault("stop", f"the account has no quota left: {words}")
        if code in _AGAIN:
            # A gateway that gave up may stand before a model that did not.
            wait = _retry_after(error.response.headers)
            return Fault("again", f"status {code}: {words}", charged=code in (502, 504), wait=wait)
        if code in _DECLINED:
            return Reply("declined", None, f"status {code}: {words}", 0, 0, round(seconds, 3))
        if 300 <= code < 400:
            return Fault("stop", f"status {code}: it leads elsewhere, and keys are not taken along")
        return Fault("stop", f"status {code}: {words}")

    def _clean(self, words: str) -> str:
        """One line without the key."""
        found = " ".join(words.split())
        return (found.replace(self._key, "[key]") if self._key else found)[:_WORDS]


def _key(config: VerificationConfig) -> str:
    if not config.key_variable:
        return ""
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {config.key_variable} is not set, and verification needs the key in it",
            f"export {config.key_variable}=…, or leave verification.base_url empty",
        )
    return key


def _usage(content: Any) -> Tokens | None:
    """What the endpoint says it counted; None where it does not say."""
    try:
        used = content["usage"]
        return Tokens(int(used["prompt_tokens"]), int(used["completion_tokens"]))
    except (LookupError, TypeError, ValueError):
        return None


def _connection(error: Any) -> Fault:
    """A connection that failed: nothing can have been charged where none was ever made."""
    cause = type(error.__cause__).__name__
    never = cause in ("ConnectError", "ConnectTimeout", "PoolTimeout")
    return Fault("again", "cannot be reached" if never else f"the connection broke ({cause})", charged=not never)


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait, from any of the three ways to say so; None where there are none or they make no sense."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
