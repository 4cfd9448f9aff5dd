from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.vlm.questions import (
    Question,
    Reply,
    View,
    count_text,
    label_text,
    parse,
    reply_schema,
    verdict,
)


def reply(value: str | None) -> Reply:
    return Reply("answered" if value is not None else "malformed", value, f"w{value}", 1, 1, 0.1)


def test_wordings_name_the_class_its_words_and_the_others() -> None:
    text = label_text(None, "hard_hat", ["hard hat", "helmet"], ["hard_hat", "person"], boxed=True)
    assert '"hard_hat" (hard hat, helmet)' in text and "box" in text
    whole = label_text(None, "local", ["a hole"], ["nominal", "local"], boxed=False)
    assert "nominal, local" in whole and "box" not in whole
    mine = label_text('{"is it": "{class_name}"} {unknown}', "cat", ["cat"], ["cat"], boxed=True)
    assert mine == '{"is it": "cat"} {unknown}'
    assert '"cat" (cat)' in count_text("cat", ["cat"])
    # A class is text, not a template.
    assert "{words}" in label_text(None, "{words}", ["x"], [], boxed=True)


@pytest.mark.parametrize("kind", ["label", "count", "describe"])
def test_schemas_are_strict_in_the_sense_of_structured_outputs(kind: str) -> None:
    found = reply_schema(kind)  # type: ignore[arg-type]
    assert found["additionalProperties"] is False and sorted(found["required"]) == sorted(found["properties"])
    assert "$ref" not in json.dumps(found) and "default" not in json.dumps(found)
    jsonschema.Draft202012Validator.check_schema(found)


texts = st.one_of(
    st.text(),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-5, 10**7)
        | st.floats(allow_nan=False)
        | st.sampled_from(["yes", "no"]),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["seen", "answer", "count", "x"]), x),
        max_leaves=5,
    ).map(json.dumps),
)


@given(texts)
def test_an_answer_is_taken_exactly_where_the_schema_allows_it(text: str) -> None:
    for kind in ("label", "count"):
        try:
            content = json.loads(text)
            jsonschema.validate(content, reply_schema(kind))  # type: ignore[arg-type]
            valid = isinstance(content, dict)
        except (ValueError, jsonschema.ValidationError):
            valid = False
        if valid and kind == "count":
            # JSON Schema takes 3.0 for an integer; nobody counts like that.
            valid = isinstance(content["count"], int) and 0 <= content["count"] <= 100_000
        found = parse(kind, text)  # type: ignore[arg-type]
        assert (found is not None) == valid
        if found:
            assert found[0] == str(content["answer" if kind == "label" else "count"])


def test_more_than_half_of_all_attempts_make_a_label() -> None:
    said = verdict("label", [reply("yes"), reply("no"), reply("yes")])
    assert (said.answer, said.agreement, said.words) == ("yes", pytest.approx(2 / 3), "wyes")
    assert verdict("label", [reply("yes"), reply(None), reply(None)]).answer is None
    assert verdict("label", [reply("yes"), reply("no")]).answer is None
    assert verdict("label", [reply("unsure")]).answer == "unsure"
    assert verdict("label", [reply(None)]).agreement == 0 and verdict("label", []).answer is None


def test_the_middle_one_makes_a_count() -> None:
    said = verdict("count", [reply("3"), reply("12"), reply("4")])
    assert said.answer == "4" and said.agreement == pytest.approx(1 / 3)
    assert verdict("count", [reply("10"), reply("9"), reply(None), reply("9")]).answer == "9"


def test_addresses_differ_with_anything_that_matters() -> None:
    one = Question("label", "t", View(("a",), (0.0, 0.0, 9.0, 9.0), 100))
    others = [
        Question("count", "t", one.view),
        Question("label", "u", one.view),
        Question("label", "t", View(("b",), one.view.box, 100)),
        Question("label", "t", View(("a",), (0.0, 0.0, 9.0, 9.5), 100)),
        Question("label", "t", View(("a",), one.view.box, 101)),
        Question("label", "t", View(("a",), one.view.box, 100, 0.4)),
    ]
    known = {one.key("s", 0), one.key("s", 1), one.key("z", 0), *(q.key("s", 0) for q in others)}
    assert len(known) == 3 + len(others)
    assert Question("label", "t", View(("a",), (0.0, 0.0, 9.0, 9.0), 100)).key("s", 0) == one.key("s", 0)
