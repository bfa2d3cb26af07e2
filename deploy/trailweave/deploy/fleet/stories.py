"""The stories of the fleet, as an auditor would tell them. Every one is clean as told here."""

import random
from collections.abc import Callable
from typing import Final

from trailweave.deploy.fleet.cast import (
    ADD_NOTE,
    APPLY_DEPLOYMENT,
    APPROVE_INVOICE,
    CREATE_TICKET,
    EXPORT_CUSTOMERS,
    GET_CUSTOMER,
    GET_INVOICE,
    MATCH_ORDER,
    PLAN_DEPLOYMENT,
    PUBLISH_REPORT,
    QUERY_WAREHOUSE,
    READ_LEASE,
    REFUND,
    ROTATE_ROOT,
    SCHEDULE_TRANSFER,
    SEARCH_DOCUMENTS,
    Company,
)
from trailweave.deploy.fleet.script import Script
from trailweave.deploy.fleet.story import Story
from trailweave.deploy.fleet.terms import Setting

#: No story is longer than this, the delay of an anomaly included.
STORY_US_MAX: Final = 30 * 60 * 1_000_000

_SUPPLIERS: Final = ("Lindner GmbH", "Northwind", "Kestrel Logistics", "Oda Paper", "Vexler AG")
_SERVICES: Final = ("checkout", "catalogue", "ledger", "search", "notifications")
_DATABASES: Final = ("orders", "billing", "inventory")


def invoice_approval(story: Story) -> None:
    """A procurement agent checks an invoice; large ones need a second pair of eyes."""
    pick = story.pick
    invoice, amount = f"INV-{pick.randrange(10_000, 99_999)}", pick.randrange(80, 20_000)
    supplier = pick.choice(_SUPPLIERS)
    agent = _script(story, "procurement", Setting(workflow=f"accounts-payable/{invoice}"))
    agent.starts(f"approve {invoice}", GET_INVOICE, MATCH_ORDER, APPROVE_INVOICE)
    agent.prompted(f"Approve {invoice} of {supplier} if it matches its order.")
    agent.retrieved(f"erp://invoices/{invoice}", invoice)
    lease = agent.borrows(*(t.scope for t in (GET_INVOICE, MATCH_ORDER, APPROVE_INVOICE)))
    agent.does("I read the invoice first.", GET_INVOICE, invoice, lease, invoice=invoice)
    agent.does("I compare it with the order.", MATCH_ORDER, invoice, lease, invoice=invoice)
    approve = agent.call(APPROVE_INVOICE, invoice, invoice=invoice, amount_eur=amount)
    agent.responds(f"It matches: {amount} EUR.", approve)
    agent.requested(approve)
    if amount > 10_000:
        step_up = agent.decided(approve, "step_up", "over 10,000 EUR", obligations=("four_eyes",))
        approval = agent.asks(approve, "approval", "finance-leads")
        agent.answered(approval, "allow", "order and delivery note checked")
        agent.decided(approve, reason="approved by a second person", supersedes=step_up)
    else:
        agent.decided(approve)
    agent.runs(approve, lease)
    agent.returns(lease)
    transfer = agent.call(
        SCHEDULE_TRANSFER, invoice, "workflow", invoice=invoice, amount_eur=amount
    )
    agent.requested(transfer)
    agent.decided(transfer, reason="invoice is released")
    agent.runs(transfer)
    agent.responds(f"{invoice} is approved and its payment is scheduled.")
    agent.ends("invoice approved")


def support_refund(story: Story) -> None:
    """A refund over the agent's limit is denied; a person overrides, or does not."""
    pick = story.pick
    case, amount = f"CASE-{pick.randrange(100_000, 999_999)}", pick.randrange(20, 900)
    setting = Setting("confidential", ("pii",), workflow=f"support/{case}")
    agent = _script(story, "support", setting)
    agent.starts(f"handle {case}", GET_CUSTOMER, REFUND, ADD_NOTE)
    agent.prompted("You help customers; refunds over 200 EUR need a person.", "system")
    agent.prompted(f"{case}: the parcel never came, the customer wants {amount} EUR back.")
    agent.remembers(f"customer/{case}")
    lease = agent.borrows(GET_CUSTOMER.scope, REFUND.scope, kind="oauth_token")
    agent.does("I look the customer up.", GET_CUSTOMER, case, lease, case=case)
    refund = agent.call(REFUND, case, case=case, amount_eur=amount)
    agent.responds("The carrier confirms the loss; I propose the refund.", refund)
    agent.requested(refund)
    refunded = True
    if amount > 200:
        agent.decided(refund, "deny", "over the agent's refund limit of 200 EUR")
        approval = agent.asks(refund, "override", "support-leads")
        refunded = pick.random() < 0.8
        answer = "loss confirmed by the carrier" if refunded else "the parcel was delivered"
        agent.answered(approval, "allow" if refunded else "deny", answer)
    else:
        agent.decided(refund)
    if refunded:
        agent.runs(refund, lease)
    agent.returns(lease)
    note = agent.call(ADD_NOTE, case, "human", case=case)
    agent.requested(note)
    agent.decided(note, reason="a person's own action")
    agent.runs(note)
    agent.responds("Done." if refunded else "I told the customer why not.")
    agent.ends("refunded" if refunded else "refund declined")


def secrets_rotation(story: Story) -> None:
    """A scheduled agent rotates a database's root credential; no content is kept."""
    database = story.pick.choice(_DATABASES)
    resource = f"database/config/{database}"
    setting = Setting("secret", ("credentials",), "hashed", "schedule", f"rotation/{database}")
    agent = _script(story, "secrets", setting)
    agent.starts(f"rotate {database}", READ_LEASE, ROTATE_ROOT)
    agent.prompted(f"Rotate the root credential of {database}.", "system")
    lease = agent.borrows(READ_LEASE.scope, ROTATE_ROOT.scope, kind="vault_token")
    agent.does("Who still holds a lease?", READ_LEASE, resource, lease, role=database)
    agent.wait(120, 600)
    lease = agent.renews(lease)
    agent.does("Nobody does.", ROTATE_ROOT, resource, lease, role=database)
    check = agent.call(READ_LEASE, resource, "workflow", role=database)
    agent.requested(check)
    agent.decided(check)
    agent.runs(check, lease)
    agent.returns(lease)
    agent.responds("Rotated, and checked.")
    agent.ends("rotated")


def deployment(story: Story) -> None:
    """A deployment is denied by policy, escalated, and mostly approved."""
    pick = story.pick
    service, build = pick.choice(_SERVICES), pick.randrange(1_000, 9_999)
    resource = f"deployments/{service}"
    agent = _script(story, "deployer", Setting(workflow=f"release/{service}-{build}"))
    agent.starts(f"deploy {service} {build}", PLAN_DEPLOYMENT, APPLY_DEPLOYMENT)
    agent.prompted(f"Bring build {build} of {service} to production.")
    agent.retrieved(f"git://{service}/releases/{build}", f"{service}-{build}")
    lease = agent.borrows(PLAN_DEPLOYMENT.scope, APPLY_DEPLOYMENT.scope, kind="jwt_svid")
    agent.does("I plan it.", PLAN_DEPLOYMENT, resource, lease, service=service, build=build)
    apply = agent.call(APPLY_DEPLOYMENT, resource, service=service, build=build)
    agent.responds("The plan changes two pods.", apply)
    agent.requested(apply)
    denied = agent.decided(apply, "deny", "production is frozen until Monday")
    approval = agent.asks(apply, "escalation", "release-managers")
    approved = pick.random() < 0.85
    agent.answered(approval, "allow" if approved else "deny", "fix for a running incident")
    if approved:
        agent.decided(apply, reason="escalation approved", supersedes=denied)
        agent.runs(apply, lease)
    agent.returns(lease)
    agent.responds("Build is live." if approved else "It waits until Monday.")
    agent.ends("deployed" if approved else "not deployed", "ok" if approved else "denied")


def finance_analysis(story: Story) -> None:
    """An analyst's agent reads restricted data; a slow query may need a second try."""
    pick = story.pick
    quarter = f"2026-Q{pick.randrange(1, 4)}"
    setting = Setting("restricted", ("financial",), workflow=f"close/{quarter}")
    agent = _script(story, "analyst", setting)
    agent.starts(f"margin report {quarter}", QUERY_WAREHOUSE, PUBLISH_REPORT)
    agent.prompted(f"Explain the change of margin in {quarter}.")
    agent.retrieved("wiki://finance/definitions", "margin", "cost-centres")
    lease = agent.borrows(QUERY_WAREHOUSE.scope, PUBLISH_REPORT.scope)
    for table in ("revenue", "costs"):
        query = agent.call(QUERY_WAREHOUSE, f"finance.{table}", table=table, quarter=quarter)
        agent.responds(f"I need {table}.", query)
        agent.requested(query)
        agent.decided(query, reason="analyst may read finance")
        slow = pick.random() < 0.1
        agent.runs(query, lease, "timeout" if slow else "ok")
        if slow:
            again = agent.call(QUERY_WAREHOUSE, f"finance.{table}", table=table, quarter=quarter)
            agent.responds("It timed out; once more.", again)
            agent.requested(again, 2, query)
            agent.decided(again, reason="analyst may read finance")
            agent.runs(again, lease)
    report = f"reports/margin-{quarter}"
    agent.does("I file the report.", PUBLISH_REPORT, report, lease, quarter=quarter)
    agent.returns(lease)
    agent.remembers(f"report/{quarter}", "write")
    agent.responds("Margin fell because freight got dearer.")
    agent.ends("report published")


def delegated_research(story: Story) -> None:
    """Three agents: a planner delegates to a researcher, who delegates to an executor."""
    topic = story.pick.choice(_SERVICES)
    setting = Setting(workflow=f"improve/{topic}")
    scopes = (SEARCH_DOCUMENTS.scope, CREATE_TICKET.scope)
    planner = _script(story, "planner", setting, *scopes)
    planner.starts(f"improve {topic}")
    planner.prompted(f"Find out why {topic} is slow, and file what should be done.")
    planner.responds("The researcher should look into it.")
    researcher = planner.delegates("researcher", *scopes)
    researcher.starts(f"why is {topic} slow", SEARCH_DOCUMENTS)
    researcher.prompted(f"Why is {topic} slow?", "agent")
    lease = researcher.borrows(SEARCH_DOCUMENTS.scope, kind="jwt_svid")
    words = f"{topic} latency"
    researcher.does("I search.", SEARCH_DOCUMENTS, "documents", lease, words=words)
    researcher.retrieved(f"documents://incidents/{topic}", f"incident-{topic}-4")
    researcher.returns(lease)
    executor = researcher.delegates("executor", CREATE_TICKET.scope)
    executor.starts(f"file a ticket for {topic}", CREATE_TICKET)
    executor.prompted(f"File: add an index to {topic}.", "agent")
    lease = executor.borrows(CREATE_TICKET.scope, kind="jwt_svid")
    executor.does("I file it.", CREATE_TICKET, f"tickets/{topic}", lease, title="add an index")
    executor.returns(lease)
    executor.ends("ticket filed")
    researcher.responds("An index is missing; a ticket is filed.")
    researcher.ends("cause found")
    planner.responds("Cause found, ticket filed.")
    planner.ends("done")


def suspected_misuse(story: Story) -> None:
    """Somebody tries to get the customer list out through the support agent; policy refuses."""
    setting = Setting("confidential", ("pii",), "full", "chat", "support/ad-hoc")
    agent = _script(story, "support", setting)
    agent.starts("open question", GET_CUSTOMER, EXPORT_CUSTOMERS, CREATE_TICKET)
    agent.prompted("Which customers are in Oslo?")
    lease = agent.borrows(GET_CUSTOMER.scope, kind="oauth_token")
    agent.does("I look one up.", GET_CUSTOMER, "customers/oslo", lease, city="Oslo")
    agent.returns(lease)
    agent.prompted("Give me all of them with phone numbers, as a file.", verdict="flag")
    export = agent.call(EXPORT_CUSTOMERS, "customers", city="all", format="csv")
    agent.responds("I export them.", export)
    agent.requested(export)
    agent.decided(export, "deny", "support agents may not export customers")
    agent.refused(export)
    ticket = "tickets/security"
    agent.does("I report this.", CREATE_TICKET, ticket, None, title="export attempt refused")
    agent.responds("I can't do that, and have reported the request.")
    agent.ends("refused and reported", "denied")


#: Story -> how often it is told.
STORIES: Final[dict[Callable[[Story], None], int]] = {
    invoice_approval: 30,
    support_refund: 25,
    secrets_rotation: 8,
    deployment: 12,
    finance_analysis: 15,
    delegated_research: 8,
    suspected_misuse: 2,
}
_TELLERS: Final = tuple(STORIES)
_WEIGHTS: Final = tuple(STORIES.values())


def tell(company: Company, pick: random.Random, start_us: int) -> Story:
    """One story of the fleet, by chance."""
    teller = pick.choices(_TELLERS, _WEIGHTS)[0]
    name = teller.__name__
    story = Story(name, company, f"{pick.getrandbits(128) or 1:032x}", start_us, pick)
    teller(story)
    return story


def _script(story: Story, kind: str, setting: Setting, *scopes: str) -> Script:
    company = story.company
    sponsor = story.pick.choice(company.people)
    return Script(story, company.agents[kind], sponsor, setting, scopes)
