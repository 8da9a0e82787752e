"""A notification as it is posted: its body, its id and its signature.

The form is that of Standard Webhooks 1.0 (standardwebhooks.com), for which receivers have
libraries in most languages.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from datetime import datetime
from typing import Any, Final

from daemon.ledger.ledger import Ledger
from daemon.ledger.records import Event, Outgoing

PREFIX: Final = "whsec_"
KEY_BYTES: Final = 32
# A rebuild learns what all batches brought.
NAMED: Final = 100


def fresh_key() -> str:
    """A new key as its file holds it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def key_of(text: str) -> bytes:
    """The key that a file's text stands for: Base64 after `whsec_`, otherwise the text itself."""
    if text.startswith(PREFIX):
        try:
            return base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            pass
    return text.encode()


def message_id(event: Event) -> str:
    """The same at every try; ids sort as texts in the order of what they tell.

    The hash tells a history from another one that a restored backup began.
    """
    return f"evt_{event.seq:012}_{event.hash[:8]}"


def body(ledger: Ledger, outgoing: Outgoing) -> bytes:
    """The JSON that is posted; the same at every try, unless a retraction has erased its reason."""
    event = outgoing.event
    data: dict[str, Any] = {"event": event.seq, "subject": event.subject, **event.payload}
    kind, _, number = event.subject.partition(":")
    if kind == "plan":
        data |= _plan(ledger, int(number))
    elif kind == "revision":
        data |= {"revision": int(number)}
    told = {"type": outgoing.type.value, "timestamp": event.at.isoformat(), "data": data}
    return json.dumps(told, ensure_ascii=False).encode()


def _plan(ledger: Ledger, plan: int) -> dict[str, Any]:
    head = ledger.plans.head(plan)
    names = ledger.batches.names(ledger.plans.batches(plan, NAMED))
    return {
        "plan": plan,
        "kind": head.kind.value,
        "facts": head.facts,
        "batches": [{"id": batch, "name": name} for batch, name in names.items()],
    }


def headers(key: bytes, identity: str, content: bytes, now: datetime) -> dict[str, str]:
    """Id, time of this try in seconds, and `v1,` HMAC-SHA256 (RFC 2104) over both and the body."""
    seconds = str(int(now.timestamp()))
    return {
        "content-type": "application/json",
        "user-agent": "palorad",
        "webhook-id": identity,
        "webhook-timestamp": seconds,
        "webhook-signature": f"v1,{signature(key, identity, seconds, content)}",
    }


def signature(key: bytes, identity: str, seconds: str, content: bytes) -> str:
    """Base64 of the HMAC over `id.timestamp.body`."""
    signed = b".".join((identity.encode(), seconds.encode(), content))
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
