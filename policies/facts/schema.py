"""The JSON Schema of one native line."""

from __future__ import annotations

from typing import Any, Final

from policies.facts.jsonline import LineLimits
from policies.records import Operation, Priority

ID: Final = "https://palorad.invalid/fact.schema.json"
_DAY: Final = r"\d{4}-\d{2}-\d{2}"
_TIME: Final = r"\d{2}(:\d{2}(:\d{2}(\.\d+)?)?)?"
_ZONE: Final = r"(Z|[+-]\d{2}:?\d{2})?"


def line_schema(limits: LineLimits | None = None) -> dict[str, Any]:
    """What `palorad schema` prints; what it cannot say (equal texts, dates in order) is checked
    when the line is read.
    """
    most = limits or LineLimits()
    text = {"type": "string", "minLength": 1, "maxLength": most.other}
    prompt = {"type": "string", "pattern": r"\S", "maxLength": most.prompt}
    moment = {"type": "string", "pattern": f"^{_DAY}([T ]{_TIME}{_ZONE})?$"}
    paraphrases = {"type": "array", "items": prompt, "maxItems": most.paraphrases}
    fields = {
        "id": {"type": "string", "pattern": r"^[^\s/~]{1,128}$"},
        "prompt": prompt,
        "answer": {
            "anyOf": [
                {"type": "string", "pattern": r"\S", "maxLength": most.answer},
                {"type": "number"},
            ]
        },
        "subject": text,
        "relation": text,
        "paraphrases": paraphrases,
        "eval_prompts": paraphrases,
        "statement": text,
        "valid_from": moment,
        "valid_until": moment,
        "source": text,
        "op": {"enum": [op.value for op in Operation]},
        "priority": {"enum": [priority.value for priority in Priority]},
    }
    optional = {name: {"anyOf": [field, {"type": "null"}]} for name, field in fields.items()}
    retracts = {"properties": {"op": {"const": Operation.RETRACT.value}}, "required": ["op"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "A line of facts",
        "description": "Prompt and answer are enough; a retraction names a fact instead.",
        "type": "object",
        "properties": optional,
        "additionalProperties": False,
        "if": retracts,
        "then": {
            "anyOf": [
                {"required": ["id"]},
                {"required": ["subject", "relation"]},
                {"required": ["prompt"]},
            ]
        },
        "else": {
            "properties": {"prompt": fields["prompt"], "answer": fields["answer"]},
            "required": ["prompt", "answer"],
        },
    }
