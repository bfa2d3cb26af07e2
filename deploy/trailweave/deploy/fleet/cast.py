"""Who plays in the simulated fleet: companies, their agents, people, tools and reporting systems.

Plain data, shared by every session of a fleet. The names are invented; domains end in `.example`.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import Any, Final, Literal

from trailweave.schemas.hashing import TenantKey

Json = dict[str, Any]
#: Authorities, as `session_started.expected_sources` names them; approvals report as `policy`.
Role = Literal["agent", "gateway", "policy", "approvals", "vault", "downstream"]

EXPECTED_SOURCES: Final = ["agent", "gateway", "policy", "vault", "downstream"]
#: Company -> share of the sessions.
DEFAULT_TENANTS: Final = {"acme": 0.7, "globex": 0.2, "initech": 0.1}

_HOUR_US: Final = 3_600_000_000
_REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool behind the gateway, and the system in which its effect shows."""

    name: str
    server: str
    action: str
    scope: str
    system: str
    operation: str
    side_effect: bool = False
    #: Whether `system` keeps a log that reaches the trail, for reads too.
    observed: bool = False
    protocol: str = "mcp"

    @property
    def version(self) -> str:
        """Version of its server."""
        return _SERVER_VERSIONS[self.server]

    @property
    def definition_hash(self) -> str:
        """Hash of the definition that the model was offered."""
        return _DEFINITION_HASHES[self.name]


_SERVER_VERSIONS: Final = {
    "erp-mcp": "1.8.2",
    "payments-api": "2026-09-01",
    "crm-mcp": "3.1.0",
    "vault-mcp": "0.9.4",
    "deploy-mcp": "2.0.5",
    "warehouse-mcp": "1.2.7",
    "reports-mcp": "1.0.3",
    "documents-mcp": "4.4.1",
    "tickets-mcp": "2.7.0",
}

GET_INVOICE: Final = Tool(
    "erp.get_invoice", "erp-mcp", "read", "erp:invoices:read", "sap", "BAPI_INVOICE_READ"
)
MATCH_ORDER: Final = Tool(
    "erp.match_purchase_order", "erp-mcp", "read", "erp:orders:read", "sap", "BAPI_PO_GETDETAIL"
)
APPROVE_INVOICE: Final = Tool(
    "erp.approve_invoice",
    "erp-mcp",
    "update",
    "erp:invoices:approve",
    "sap",
    "BAPI_INVOICE_RELEASE",
    side_effect=True,
    observed=True,
)
SCHEDULE_TRANSFER: Final = Tool(
    "payments.schedule_transfer",
    "payments-api",
    "pay",
    "payments:transfers:create",
    "payments",
    "transfer.created",
    side_effect=True,
    observed=True,
    protocol="http",
)
GET_CUSTOMER: Final = Tool(
    "crm.get_customer", "crm-mcp", "read", "crm:customers:read", "salesforce", "query"
)
ADD_NOTE: Final = Tool(
    "crm.add_note",
    "crm-mcp",
    "create",
    "crm:notes:write",
    "salesforce",
    "insert",
    side_effect=True,
    observed=True,
)
EXPORT_CUSTOMERS: Final = Tool(
    "crm.export_customers",
    "crm-mcp",
    "read",
    "crm:customers:export",
    "salesforce",
    "bulk_query",
    side_effect=True,
    observed=True,
)
REFUND: Final = Tool(
    "payments.refund",
    "payments-api",
    "pay",
    "payments:refunds:create",
    "payments",
    "refund.created",
    side_effect=True,
    observed=True,
    protocol="http",
)
READ_LEASE: Final = Tool(
    "vault.lookup_lease", "vault-mcp", "read", "database/roles:read", "vault", "sys/leases/lookup"
)
ROTATE_ROOT: Final = Tool(
    "vault.rotate_root",
    "vault-mcp",
    "execute",
    "database/rotate-root:update",
    "postgres",
    "ALTER ROLE",
    side_effect=True,
    observed=True,
)
PLAN_DEPLOYMENT: Final = Tool(
    "deploy.plan", "deploy-mcp", "read", "deployments:plan", "kubernetes", "dry-run"
)
APPLY_DEPLOYMENT: Final = Tool(
    "deploy.apply",
    "deploy-mcp",
    "deploy",
    "deployments:apply",
    "kubernetes",
    "patch deployments",
    side_effect=True,
    observed=True,
)
QUERY_WAREHOUSE: Final = Tool(
    "warehouse.query",
    "warehouse-mcp",
    "read",
    "warehouse:finance:read",
    "postgres",
    "SELECT",
    observed=True,
)
PUBLISH_REPORT: Final = Tool(
    "reports.publish",
    "reports-mcp",
    "create",
    "reports:finance:write",
    "sharepoint",
    "FileUploaded",
    side_effect=True,
    observed=True,
)
SEARCH_DOCUMENTS: Final = Tool(
    "documents.search", "documents-mcp", "read", "documents:read", "opensearch", "search"
)
CREATE_TICKET: Final = Tool(
    "tickets.create",
    "tickets-mcp",
    "create",
    "tickets:write",
    "jira",
    "issue.created",
    side_effect=True,
    observed=True,
)

TOOLS: Final = (
    GET_INVOICE,
    MATCH_ORDER,
    APPROVE_INVOICE,
    SCHEDULE_TRANSFER,
    GET_CUSTOMER,
    ADD_NOTE,
    EXPORT_CUSTOMERS,
    REFUND,
    READ_LEASE,
    ROTATE_ROOT,
    PLAN_DEPLOYMENT,
    APPLY_DEPLOYMENT,
    QUERY_WAREHOUSE,
    PUBLISH_REPORT,
    SEARCH_DOCUMENTS,
    CREATE_TICKET,
)
_DEFINITION_HASHES: Final = {
    tool.name: "sha256:"
    + hashlib.sha256(f"{tool.name}@{_SERVER_VERSIONS[tool.server]}".encode()).hexdigest()
    for tool in TOOLS
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its provider reports it."""

    provider: str
    requested: str
    name: str
    version: str
    server: str
    region: str


_MODELS: Final = (
    Model("openai", "gpt-4o", "gpt-4o-2024-08-06", "fp_50cad350e4", "api.openai.com", "us"),
    Model(
        "mistral_ai",
        "mistral-large-latest",
        "mistral-large-2411",
        "24.11",
        "api.mistral.ai",
        "eu-west",
    ),
    Model(
        "aws.bedrock",
        "meta.llama3-1-70b-instruct-v1:0",
        "meta.llama3-1-70b-instruct-v1:0",
        "v1:0",
        "bedrock-runtime.eu-central-1.amazonaws.com",
        "eu-central-1",
    ),
)


@dataclass(frozen=True, slots=True)
class Producer:
    """One process that reports."""

    role: Role
    producer_id: str
    #: What the envelope says of it: producer_id, producer_epoch, reporter, runtime.
    fields: Json


@dataclass(frozen=True, slots=True)
class Agent:
    """One kind of agent of a company, with its replicas."""

    agent_id: str
    version: str
    owner: str
    identity: Json
    model: Model
    replicas: tuple[Producer, ...]


@dataclass(frozen=True, slots=True)
class Company:
    """One tenant with all its people and systems."""

    name: str
    key: TenantKey
    people: tuple[Json, ...]
    #: Those who approve; none of them is a sponsor or owns an agent.
    approvers: tuple[Json, ...]
    agents: dict[str, Agent]
    systems: dict[Role, tuple[Producer, ...]]
    bundles: dict[str, str]

    def system(self, role: Role, pick: random.Random) -> Producer:
        """One replica of a reporting system."""
        return pick.choice(self.systems[role])


_PEOPLE: Final = ("maria.lindqvist", "tom.okafor", "aiko.tanaka", "james.whitfield", "lena.brandt")
_APPROVERS: Final = ("carla.mendes", "piotr.zielinski", "grace.adeyemi", "henrik.solberg")
#: Agent -> version, who answers for it, and its model.
_AGENTS: Final = {
    "procurement": ("2.3.1", "procurement-automation", 0),
    "support": ("5.0.2", "customer-care", 1),
    "secrets": ("1.1.0", "platform-security", 2),
    "deployer": ("3.2.0", "release-engineering", 0),
    "analyst": ("1.7.4", "finance-data", 2),
    "planner": ("0.9.8", "operations", 0),
    "researcher": ("0.9.8", "operations", 1),
    "executor": ("0.9.8", "operations", 1),
}
_SYSTEMS: Final[dict[Role, str]] = {
    "gateway": "tool-gateway",
    "policy": "opa",
    "approvals": "approval-desk",
    "vault": "vault",
    "downstream": "log-collector",
}


def human(name: str, domain: str) -> Json:
    """A person who signed in."""
    return {
        "kind": "human",
        "subject": f"{name}@{domain}",
        "issuer": f"https://login.{domain}",
        "assurance": "verified",
        "evidence": {"method": "oidc", "kid": "2026-10", "verified_by": f"login.{domain}"},
    }


def _workload(name: str, domain: str, namespace: str, kind: str = "workload") -> Json:
    return {
        "kind": kind,
        "subject": f"spiffe://{domain}/ns/{namespace}/sa/{name}",
        "issuer": f"spiffe://{domain}",
        "assurance": "verified",
        "evidence": {"method": "x509", "kid": None, "verified_by": "service mesh"},
    }


def _replicas(
    role: Role, name: str, identity: Json, base_time_us: int, seed: str
) -> tuple[Producer, ...]:
    pick = random.Random(f"{seed}:{name}")  # noqa: S311 - reproducible, no secret
    pods = [f"{name}-{pick.getrandbits(36):09x}-{i}" for i in range(_REPLICAS)]
    return tuple(
        Producer(
            role,
            pod,
            {
                "producer_id": pod,
                "producer_epoch": base_time_us - pick.randrange(24 * _HOUR_US, 96 * _HOUR_US),
                "reporter": identity,
                "runtime": {"host": f"node-{pick.randrange(8)}", "pod": pod},
            },
        )
        for pod in pods
    )


def company(name: str, base_time_us: int) -> Company:
    """Everybody of one company; its processes started some days before `base_time_us`."""
    domain = f"{name}.example"
    agents = {}
    for kind, (version, owner, model) in _AGENTS.items():
        identity = _workload(f"{kind}-agent", domain, "agents", "agent")
        agents[kind] = Agent(
            f"{name}-{kind}-agent",
            version,
            f"{owner}@{domain}",
            identity,
            _MODELS[model],
            _replicas("agent", f"{kind}-agent", identity, base_time_us, name),
        )
    systems: dict[Role, tuple[Producer, ...]] = {
        role: _replicas(role, system, _workload(system, domain, "platform"), base_time_us, name)
        for role, system in _SYSTEMS.items()
    }
    return Company(
        name,
        # A demonstration's key, made from a public name on purpose: it protects nothing.
        TenantKey(f"{name}-demo", hashlib.sha256(f"trailweave demo {name}".encode()).digest()),
        tuple(human(person, domain) for person in _PEOPLE),
        tuple(human(person, domain) for person in _APPROVERS),
        agents,
        systems,
        {"agent-tools": f"r{len(name)}-2026.11.{len(name) + 10}", "data-access": "r31-2026.10.28"},
    )
