"""Who acts, who reports, on whose behalf: the schemas' Identity as values. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Record = dict[str, Any]

IdentityKind = Literal["unknown", "human", "agent", "workload", "service_account"]
Assurance = Literal["asserted", "verified"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """How an identity was proved."""

    method: str
    kid: str | None = None
    #: Microseconds since 1970.
    expires_at: int | None = None
    verified_by: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A human, an agent, a workload or a service account.

    `subject` is a SPIFFE ID, an OIDC `sub`, an e-mail or an account name. `assurance` is
    `verified` only where `evidence` says how.
    """

    kind: IdentityKind
    subject: str
    issuer: str | None = None
    assurance: Assurance = "asserted"
    evidence: Evidence | None = None

    def record(self) -> Record:
        """As the schemas have it."""
        return asdict(self)


def identity_of(who: Identity | str, kind: IdentityKind) -> Identity:
    """A bare subject becomes an asserted identity: a workload if it is a SPIFFE ID, else `kind`."""
    if isinstance(who, Identity):
        return who
    return Identity("workload" if who.startswith("spiffe://") else kind, who)


def delegate(who: Identity, scopes: Sequence[str]) -> Record:
    """One step of a delegation: RFC 8693's `act`, and what it was allowed to do."""
    return {
        "kind": who.kind,
        "subject": who.subject,
        "issuer": who.issuer,
        "assurance": who.assurance,
        "scopes": list(scopes),
    }
