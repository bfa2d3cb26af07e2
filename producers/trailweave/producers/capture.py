"""What of a content is kept: its text, a keyed hash of it, or neither. Pure.

`metadata` keeps neither, `hashed` keyed hashes, `redacted` and `full` hashes and texts. Secrets
are taken out of texts at every level, and reported at every level; what `redacted` takes out
besides is the caller's `redact_text`, such as a filter for personal data.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from trailweave.producers.redact import Redaction, Redactor, may_hold_secret
from trailweave.schemas.errors import Rejected
from trailweave.schemas.hashing import TenantKey, canonical_json, keyed_text_hash

Capture = Literal["metadata", "hashed", "redacted", "full"]
#: Text in, text without what must not be kept out.
RedactText = Callable[[str], str]

#: The kind of what a `redact_text` of the user took out.
POLICY: Final = "policy"


@dataclass(frozen=True, slots=True)
class CapturePolicy:
    """How much content is kept, and the key of its hashes (None: no hashes)."""

    level: Capture
    key: TenantKey | None = None
    redact_text: RedactText | None = None


@dataclass(slots=True)
class Captor:
    """Captures the contents of one event, and collects what was taken out of them."""

    policy: CapturePolicy
    _redactor: Redactor | None = None
    _by_policy: list[Redaction] | None = None

    def text(self, name: str, text: str | None) -> tuple[str | None, str | None]:
        """What to keep of a text, and its hash."""
        if text is None:
            return None, None
        if not text.isascii():
            # Half a surrogate pair, which Python's strings may hold, has no UTF-8.
            text = text.encode(errors="replace").decode()
        kept = self.redactor.text(name, text) if may_hold_secret(text) else text
        return self._kept(name, kept), self._hash(text)

    def json(self, name: str, value: Any) -> tuple[str | None, str | None]:
        """What to keep of a JSON value, as RFC 8785 text, and its hash.

        A string that holds JSON is taken as what it holds, so that arguments hash alike whether
        they came as the model wrote them or parsed. Raises `Rejected` (`not_json`).
        """
        if value is None:
            return None, None
        value, text = _parsed(name, value) if isinstance(value, str) else (value, "")
        text = text or _canonical(name, value)
        kept = text
        if may_hold_secret(text):
            kept = _canonical(name, self.redactor.value(name, value))
        return self._kept(name, kept), self._hash(text)

    def content(self, name: str, content: Any) -> tuple[str | None, str | None]:
        """A text as it is, anything else as JSON."""
        if content is None or isinstance(content, str):
            return self.text(name, content)
        return self.json(name, content)

    @property
    def redactor(self) -> Redactor:
        """Made when there is something to redact: that is rare."""
        if self._redactor is None:
            # At `metadata` not even a hash of the secret is kept.
            key = None if self.policy.level == "metadata" else self.policy.key
            self._redactor = Redactor(key)
        return self._redactor

    def redactions(self) -> list[Redaction]:
        """What was taken out, as the envelope has it."""
        found = [] if self._redactor is None else self._redactor.redactions()
        return found + (self._by_policy or [])

    def _hash(self, text: str) -> str | None:
        key = self.policy.key
        if key is None or self.policy.level == "metadata":
            return None
        return keyed_text_hash(key, text)

    def _kept(self, name: str, text: str) -> str | None:
        if self.policy.level == "full":
            return text
        if self.policy.level != "redacted":
            return None
        redact = self.policy.redact_text
        kept = text if redact is None else redact(text)
        if kept != text:
            self._by_policy = self._by_policy or []
            self._by_policy.append({"field": name, "kind": POLICY, "count": 1, "hmac": None})
        return kept


def _parsed(name: str, text: str) -> tuple[Any, str]:
    """The value that the text holds, or the text itself, and its canonical form."""
    try:
        value = json.loads(text)
        return value, _canonical(name, value)
    except (ValueError, RecursionError, Rejected):
        text = text.encode(errors="replace").decode()
        return text, _canonical(name, text)


def _canonical(name: str, value: Any) -> str:
    try:
        return canonical_json(value).decode()
    except (TypeError, ValueError, RecursionError) as error:
        # The error's own text may quote the value.
        raise Rejected(
            "not_json",
            f"couldn't record {name}: it is no JSON value ({type(error).__name__}); RFC 8785 has"
            " texts, finite numbers, integers up to 2^53, lists and objects",
        ) from None
