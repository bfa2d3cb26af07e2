"""Credentials that live too long, allow too much, or are in the wrong hands."""

from trailweave.deploy.fleet.anomalies.planting import (
    SECOND_US,
    Planted,
    lease_id,
    pick,
)
from trailweave.deploy.fleet.labels import Expected
from trailweave.deploy.fleet.story import Step, Story


def cred_after_expiry(story: Story) -> Planted | None:
    """A slow session goes on with a lease that has run out."""
    renewed = {step.fields["credential_id"] for step in story.named("credential_renewed")}
    issued = [s for s in story.named("credential_issued") if lease_id(s) not in renewed]
    lease = pick(story, issued)
    if lease is None:
        return None
    uses = [s for s in story.named("credential_used") if lease_id(s) == lease_id(lease)]
    in_time_us = uses[-1].at_us
    # Minutes beyond the expiry, so that no allowance for skewed clocks hides it.
    story.delay(in_time_us, 480 * SECOND_US)
    expires_us = max(in_time_us, lease.at_us + 60 * SECOND_US)
    for step in story.steps:
        if step.name.startswith("credential_") and lease_id(step) == lease_id(lease):
            step.fields["expires_at"] = expires_us
    return Planted((Expected("cred_after_expiry", lease_id(lease)),))


def cred_after_revoke(story: Story) -> Planted | None:
    """A lease is revoked while the session goes on, and a service takes it all the same."""
    used = {lease_id(step) for step in story.named("credential_used")}
    lease = pick(story, [s for s in story.named("credential_issued") if lease_id(s) in used])
    if lease is None:
        return None
    use = [s for s in story.named("credential_used") if lease_id(s) == lease_id(lease)][-1]
    revoked_us = use.at_us
    # Minutes before the use, so that no allowance for skewed clocks hides it.
    story.delay(revoked_us, 120 * SECOND_US)
    fields = lease.fields | {"reason": "suspected leak"}
    story.insert(revoked_us, "credential_revoked", lease.producer, lease.envelope, fields)
    return Planted((Expected("cred_after_revoke", lease_id(lease)),))


def cred_not_issued(story: Story) -> Planted | None:
    """An agent has a credential of its own, which no vault gave it."""
    lease = pick(story, _used(story))
    if lease is None:
        return None
    story.drop(lambda step: step is lease)
    return Planted((Expected("cred_not_issued", lease_id(lease)),))


def standing_cred(story: Story) -> Planted | None:
    """A role's time to live is a quarter of a year."""
    lease = pick(story, _used(story))
    if lease is None:
        return None
    _each(story, lease, expires_at=lease.at_us + 90 * 86_400 * SECOND_US)
    return Planted((Expected("standing_cred", lease_id(lease)),))


def cred_left_alive(story: Story) -> Planted | None:
    """An agent does not give its lease back."""
    ended = {lease_id(step) for step in story.named("credential_rotated")}
    lease = pick(story, [one for one in _used(story) if lease_id(one) not in ended])
    if lease is None:
        return None
    story.drop(lambda s: s.name == "credential_revoked" and lease_id(s) == lease_id(lease))
    end_us = max(step.at_us for step in story.steps)
    _each(story, lease, expires_at=end_us + 3_600 * SECOND_US)
    return Planted((Expected("cred_left_alive", lease_id(lease)),))


def scope_wider(story: Story) -> Planted | None:
    """A role allows everything that anybody ever asked for."""
    lease = pick(story, _used(story))
    if lease is None:
        return None
    more = [f"legacy:role-{number}:write" for number in range(9)]
    _each(story, lease, scopes_granted=[*lease.fields["scopes_granted"], *more])
    return Planted((Expected("scope_wider", lease_id(lease)),))


def scope_exceeded(story: Story) -> Planted | None:
    """A service takes a credential for what it was never meant for."""
    lease = pick(story, [one for one in _used(story) if len(one.fields["scopes_granted"]) == 1])
    if lease is None:
        return None
    use = pick(story, _uses(story, lease))
    assert use is not None
    use.fields |= {"scope_exercised": "billing:admin"}
    return Planted((Expected("scope_exceeded", lease_id(lease)),))


def shared_cred(story: Story) -> Planted | None:
    """Two agents use one lease."""
    lease = pick(story, [one for one in _used(story) if len(_uses(story, one)) > 1])
    if lease is None:
        return None
    _uses(story, lease)[-1].fields["agent_id"] = f"{story.company.name}-helper-agent"
    return Planted((Expected("shared_cred", lease_id(lease)),))


def env_crossing(story: Story) -> Planted | None:
    """A credential for the staging environment is taken in production."""
    ran = {step.call_id for step in story.named("tool_executed") if step.fields["status"] == "ok"}
    leases = [one for one in _used(story) if any(s.call_id in ran for s in _uses(story, one))]
    lease = pick(story, leases)
    if lease is None:
        return None
    _each(story, lease, credential_environment="staging")
    calls = {str(step.call_id) for step in _uses(story, lease) if step.call_id in ran}
    return Planted(tuple(Expected("env_crossing", call) for call in sorted(calls)))


def _used(story: Story) -> list[Step]:
    """Issues of credentials that are used."""
    used = {lease_id(step) for step in story.named("credential_used")}
    renewed = {lease_id(step) for step in story.named("credential_renewed")}
    issued = story.named("credential_issued")
    return [step for step in issued if lease_id(step) in used - renewed]


def _uses(story: Story, lease: Step) -> list[Step]:
    return [s for s in story.named("credential_used") if lease_id(s) == lease_id(lease)]


def _each(story: Story, lease: Step, **fields: object) -> None:
    """Say it of the credential wherever it stands."""
    for step in story.steps:
        if step.name.startswith("credential_") and lease_id(step) == lease_id(lease):
            step.fields |= fields
