"""Secrets taken out of texts and JSON values before bytes exist. Pure.

Detectors are few and sure: a format that only credentials have, or a name such as `password` with
a value behind it. What they find never leaves the process, at any capture level; the event says
that something was taken out, and a keyed hash lets the same secret be recognised elsewhere.
The recorder and the adapters of outside formats call this; nothing here reads or sends.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from trailweave.schemas.hashing import TenantKey, keyed_text_hash

#: The `kind` of every redaction made here; the detector's name stands in the text.
SECRET: Final = "secret"  # noqa: S105 - a kind of redaction
#: Above this many different secrets in one field, the rest is counted without a hash.
HASHES_PER_FIELD_MAX: Final = 16
#: Values nested deeper than this are taken out whole: nobody's arguments are.
DEPTH_MAX: Final = 64


class Redaction(TypedDict):
    """What was taken out of one field: the envelope's record."""

    field: str
    kind: str
    count: int
    hmac: str | None


@dataclass(frozen=True, slots=True)
class _Detector:
    """`triggers`: one of them is in every match, so a text without any needs no regex.

    The secret is the group `secret`, or the whole match.
    """

    name: str
    triggers: tuple[str, ...]
    pattern: re.Pattern[str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _detector(name: str, triggers: str, pattern: str) -> _Detector:
    return _Detector(name, _words(triggers), re.compile(pattern))


# Quantifiers are bounded, or start at the edge of a token only: a text made to be slow must not be.
_EDGE: Final = r"(?<![A-Za-z0-9_-])"

_FORMATS: Final = (
    _detector(
        "private_key",
        "-----BEGIN",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)"
        r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    ),
    _detector(
        "aws_access_key", "AKIA ASIA", r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    ),
    _detector(
        "github_token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        _EDGE + r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
    ),
    _detector("gitlab_token", "glpat-", _EDGE + r"glpat-[A-Za-z0-9_-]{20,255}"),
    _detector("slack_token", "xox xapp-", _EDGE + r"(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,512}"),
    _detector(
        "jwt",
        "eyJ",
        _EDGE + r"eyJ[A-Za-z0-9_-]{8,8192}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{0,2048}",
    ),
    _detector(
        "vault_token",
        "hvs. hvb. hvr. s. b.",
        _EDGE + r"(?:hv[sbr]\.[A-Za-z0-9_-]{20,512}|[sb]\.[A-Za-z0-9]{24}(?![A-Za-z0-9]))",
    ),
    _detector(
        "api_key",
        "sk- sk_live_ sk_test_ rk_live_ AIza npm_ SG. ya29. dckr_pat_ pypi-AgE",
        _EDGE
        + r"(?:sk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{20,512}|[sr]k_(?:live|test)_[A-Za-z0-9]"
        r"{16,255}|AIza[A-Za-z0-9_-]{35}|npm_[A-Za-z0-9]{36}|SG\.[A-Za-z0-9_-]{16,64}"
        r"\.[A-Za-z0-9_-]{16,64}|ya29\.[A-Za-z0-9_-]{20,512}|dckr_pat_[A-Za-z0-9_-]{20,64}"
        r"|pypi-AgE[A-Za-z0-9_-]{50,512})",
    ),
    _detector(
        "url_password",
        "://",
        r"(?<=://)[^\s/:@\"'<>]{0,256}:(?P<secret>[^\s/@\"'<>]{1,512})@",
    ),
)

#: Names whose value is a secret; matched in lower case, `-` and spaces read as `_`.
_SECRET_NAMES: Final = _words(
    "password passwd pwd passphrase secret token api_key apikey access_key accesskey account_key"
    " accountkey private_key privatekey sharedaccesskey authorization cookie"
)
#: Names that end like those but are a position in a listing, or a name of something.
_HARMLESS_NAMES: Final = frozenset(
    _words(
        "next_token page_token next_page_token nextpagetoken nexttoken pagetoken stop_token"
        " continuation_token continuationtoken sync_token synctoken start_token max_token"
        " cancellation_token eos_token bos_token pad_token unk_token"
    )
)
#: `password=…` with any value; `password: …` only if it looks like one or is quoted, so that prose
#: such as "password: please reset" stays.
#: Run on lower case: without the flag the regex engine knows which letters can start a match.
_ASSIGNED: Final = re.compile(
    r"(?:password|passwd|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key"
    r"|account[_-]?key|private[_-]?key|sharedaccesskey)\\?[\"']?\s{0,3}"
    r"(?:=>?\s{0,3}\\?[\"']?(?P<bare>[^\s\"'&,;\\\[{]{4,512})"
    r"|:\s{0,3}(?:\\?[\"'](?P<quoted>[^\"'\\\r\n]{1,512})"
    r"|(?P<loose>(?=[^\s,;]{0,64}[0-9!#$%^*+/=~@])[^\s\"'&,;\\\[{]{6,512})))"
)
#: The part of a name that lies before what `_ASSIGNED` finds: next_token, max-token.
_NAME_BEFORE: Final = re.compile(r"[\w-]*\Z")
_NAME_CHARS_MAX: Final = 40
_BEARER: Final = re.compile(
    r"(?i)\b(?:bearer|basic)\s{1,3}"
    r"(?P<secret>(?=[a-z_~+/-]{0,64}[0-9=.])[a-z0-9._~+/=-]{16,8192})"
)
_ASSIGNED_TRIGGERS: Final = ("pass", "pwd", "secret", "token", "key")
_BEARER_TRIGGERS: Final = ("bearer ", "basic ")
_NAME_TRIGGERS: Final = ("authorization", "cookie")

#: What a text must hold for the triggers beside it to be worth looking for.
_GUARDS: Final = ("_", "-", ".", "")


def _guarded() -> tuple[tuple[str, tuple[str, ...]], ...]:
    left = [trigger for each in _FORMATS for trigger in each.triggers]
    made = []
    for guard in _GUARDS:
        made.append((guard, tuple(trigger for trigger in left if guard in trigger)))
        left = [trigger for trigger in left if guard not in trigger]
    return tuple(made)


_CASED: Final = _guarded()
_UNCASED: Final = (*_ASSIGNED_TRIGGERS, *_BEARER_TRIGGERS, *_NAME_TRIGGERS)


def may_hold_secret(text: str) -> bool:
    """A quick no for almost every text: no literal of any detector is in it."""
    for guard, triggers in _CASED:
        if guard in text:
            for trigger in triggers:
                if trigger in text:
                    return True
    lower = text.lower()
    for trigger in _UNCASED:  # noqa: SIM110 - a generator costs three times as much here
        if trigger in lower:
            return True
    return False


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret, whatever it looks like."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain in _HARMLESS_NAMES:
        return False
    return any(plain == known or plain.endswith(f"_{known}") for known in _SECRET_NAMES) or (
        # camelCase: accessToken, clientSecret, dbPassword
        name[:1].islower()
        and name.endswith(("Token", "Secret", "Password", "ApiKey", "AccessKey", "PrivateKey"))
        and plain not in _HARMLESS_NAMES
    )


@dataclass(slots=True)
class Redactor:
    """Takes the secrets out of the fields of one event, and keeps count of them."""

    key: TenantKey | None = None
    _found: dict[str, Counter[str]] = field(default_factory=dict)

    def text(self, name: str, text: str) -> str:
        """`text` of the field `name`, each secret replaced by `[redacted:<detector>]`."""
        return self._text(name, text) if may_hold_secret(text) else text

    def value(self, name: str, value: Any, depth: int = 0) -> Any:
        """A JSON value, its texts and what stands under secret names redacted."""
        if isinstance(value, str):
            return self.text(name, value)
        if isinstance(value, Mapping | list | tuple) and depth >= DEPTH_MAX:
            return self._mark(name, "depth", "")
        if isinstance(value, Mapping):
            return {
                self._member_name(name, k): self._member(name, k, v, depth + 1)
                for k, v in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(name, part, depth + 1) for part in value]
        return value

    def redactions(self) -> list[Redaction]:
        """What was taken out so far, as the envelope has it."""
        made: list[Redaction] = []
        for name, secrets in self._found.items():
            if self.key is None:
                made.append(_redaction(name, secrets.total(), None))
                continue
            first = secrets.most_common(HASHES_PER_FIELD_MAX)
            made += [_redaction(name, n, keyed_text_hash(self.key, s)) for s, n in first]
            rest = secrets.total() - sum(n for _, n in first)
            if rest:
                made.append(_redaction(name, rest, None))
        return made

    def _text(self, name: str, text: str) -> str:
        for each in _FORMATS:
            if any(trigger in text for trigger in each.triggers):
                text = each.pattern.sub(self._replace(name, each.name), text)
        lower = text.lower()
        if any(trigger in lower for trigger in _BEARER_TRIGGERS):
            text = _BEARER.sub(self._replace(name, "authorization"), text)
        if any(trigger in lower for trigger in _ASSIGNED_TRIGGERS):
            text = self._assigned(name, text)
        return text

    def _assigned(self, name: str, text: str) -> str:
        pieces, end = [], 0
        for match in _ASSIGNED.finditer(_lower(text)):
            start, stop = match.span(match.lastgroup or 0)
            if text.startswith("[redacted:", start) or _harmless(match):
                continue
            pieces += [text[end:start], self._mark(name, "assigned", text[start:stop])]
            end = stop
        return "".join([*pieces, text[end:]])

    def _member_name(self, name: str, member: object) -> object:
        return self.text(name, member) if isinstance(member, str) else member

    def _member(self, name: str, member: object, value: Any, depth: int) -> Any:
        if isinstance(member, str) and value and is_secret_name(member):
            if isinstance(value, str):
                return self._mark(name, "named", value)
            # A number or a structure under such a name: a PIN, or a list of them. True and null
            # say whether there is one, not which.
            if not isinstance(value, bool):
                return self._mark(name, "named", repr(value))
        return self.value(name, value, depth)

    def _mark(self, name: str, detector: str, secret: str) -> str:
        self._found.setdefault(name, Counter())[secret] += 1
        return f"[redacted:{detector}]"

    def _replace(self, name: str, detector: str) -> Callable[[re.Match[str]], str]:
        def replaced(match: re.Match[str]) -> str:
            group = "secret" if "secret" in match.re.groupindex else 0
            start, end = (edge - match.start() for edge in match.span(group))
            whole = match.group()
            return whole[:start] + self._mark(name, detector, whole[start:end]) + whole[end:]

        return replaced


def _lower(text: str) -> str:
    """Lower case of the same length, so that places in it are places in `text`."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _harmless(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - _NAME_CHARS_MAX) : match.start()]
    prefix = _NAME_BEFORE.search(before)
    name = (prefix.group() if prefix else "") + re.split(r"[^\w-]", match.group(), maxsplit=1)[0]
    return name.replace("-", "_") in _HARMLESS_NAMES


def _redaction(name: str, count: int, digest: str | None) -> Redaction:
    return {"field": name, "kind": SECRET, "count": count, "hmac": digest}
