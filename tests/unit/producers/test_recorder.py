"""The Recorder, seen through a MemoryTransport."""

import asyncio
from typing import Any

import pytest
from trailweave.producers.identity import Evidence, Identity
from trailweave.producers.memory import MemoryTransport
from trailweave.producers.recorder import (
    Recorder,
    default_spool,
    kafka_from_environment,
    settings_from_environment,
)
from trailweave.producers.session import Session
from trailweave.producers.transport import EventTooLarge
from trailweave.schemas import events
from trailweave.schemas.codec import EVENT_BYTES_MAX
from trailweave.schemas.errors import Fatal, Rejected
from trailweave.schemas.hashing import TenantKey, keyed_hash, keyed_text_hash

KEY = TenantKey("k1", b"a key for tests")
HEADER = f"00-{'a' * 32}-{'b' * 16}-00"


@pytest.fixture
def transport() -> MemoryTransport:
    return MemoryTransport()


@pytest.fixture
def recorder(transport: MemoryTransport) -> Recorder:
    return Recorder(
        transport, tenant="acme", agent="clerk", sponsor="ann@acme.example", key=KEY, owner="ops"
    )


def record_everything(session: Session) -> None:
    session.prompt_submitted("hello")
    session.context_retrieved("a page", source_uri="https://example.com", trust="untrusted")
    session.memory_accessed("notes", "a note", operation="write")
    session.model_responded("openai", "hi", [{"tool": "pay", "arguments": "{}"}], model="m")
    with session.tool_call("pay", {"n": 1}, side_effect=True) as call:
        call.result = {"ok": True}
    session.policy_decided("allow", call_id=call.call_id, bundles={"main": "7"})
    session.guardrail_checked("pii", "pass")
    approval = session.approval_requested(context="what is shown", to=["bob"])
    session.approval_decided(approval, "allow", "bob@acme.example", ticket="T-1")
    for method in (
        session.credential_issued,
        session.credential_used,
        session.credential_renewed,
        session.credential_rotated,
        session.credential_revoked,
    ):
        method("accessor-1", lease_id="lease-1", handles={"jti": "j"})
    session.downstream_observed("postgres", "select", request_id="r-1")


def test_every_event_type_is_recorded_under_its_traces_key(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("pay the invoice") as session:
        record_everything(session)

    assert set(transport.names) == set(events.event_names())
    assert {sent.key for sent in transport.sent} == {session.trace_id.encode()}
    assert all(
        sent.topic == events.event_types()[name].topic
        for sent, name in zip(transport.sent, transport.names, strict=True)
    )


def test_a_session_tells_how_it_ended_and_how_much_to_expect(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("task", exhaustive=True) as session:
        session.prompt_submitted("x")
        session.expect("gateway@host:1", 4)
        session.outcome = "paid"
    (end,) = transport.of("session_ended")

    assert end["expected"] == {recorder.producer_id: 3, "gateway@host:1": 4}
    assert (end["status"], end["outcome"], end["root"]) == ("ok", "paid", True)
    assert end["expected_exhaustive"] is True


def test_an_exception_ends_the_session_with_its_type_and_not_its_message(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    def fail() -> None:
        with recorder.session("task") as session, session.tool_call("pay"):
            raise ValueError("a message to nobody")

    with pytest.raises(ValueError, match="nobody"):
        fail()
    (end,), (call,) = transport.of("session_ended"), transport.of("tool_executed")

    assert (end["status"], end["outcome"]) == ("error", "ValueError")
    assert (call["status"], call["error"]) == ("error", "ValueError")
    assert not any(b"nobody" in sent.value for sent in transport.sent)


def test_the_same_session_serves_async_programs(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    async def agent() -> None:
        async with recorder.session("task") as session, session.tool_call("pay") as call:
            await asyncio.sleep(0)
            call.result = 1

    asyncio.run(agent())

    assert transport.names == [
        "session_started", "tool_requested", "tool_executed", "session_ended",
    ]  # fmt: skip


def test_a_cancelled_task_ends_its_session_as_cancelled(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    async def agent() -> None:
        async with recorder.session("task"):
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(agent())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())

    assert transport.of("session_ended")[0]["status"] == "cancelled"


def test_a_child_agent_works_in_the_same_trace_with_its_delegation(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with (
        recorder.session("task", scopes=["read", "pay"], workflow_id="w1") as parent,
        parent.child("helper", "look it up", ["read"]) as child,
        child.child("helper-2", scopes=["read"]) as grandchild,
    ):
        grandchild.prompt_submitted("x")
    (prompt,) = transport.of("prompt_submitted")
    starts, ends = transport.of("session_started"), transport.of("session_ended")

    assert [(d["subject"], d["scopes"]) for d in prompt["delegation"]] == [
        ("helper-2", ["read"]),
        ("helper", ["read"]),
        ("clerk", ["read", "pay"]),
    ]
    assert prompt["actor"]["subject"] == prompt["agent_id"] == "helper-2"
    assert prompt["sponsor"]["subject"] == "ann@acme.example"
    assert prompt["workflow_id"] == "w1"
    assert starts[1]["parent_session_event_id"] == starts[0]["event_id"]
    assert starts[1]["parent_span_id"] == starts[0]["span_id"]
    assert [end["root"] for end in ends] == [False, False, True]
    assert [end["expected"][recorder.producer_id] for end in ends] == [5, 6, 7]


def test_an_incoming_trace_is_continued_and_handed_on(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("task", traceparent=HEADER) as session:
        handed_on = session.traceparent
    (start,) = transport.of("session_started")

    assert (start["trace_id"], start["parent_span_id"]) == ("a" * 32, "b" * 16)
    assert start["parent_remote"] is True
    assert handed_on == f"00-{'a' * 32}-{start['span_id']}-00"


def test_a_bad_incoming_header_starts_a_new_trace(recorder: Recorder) -> None:
    with recorder.session("task", traceparent="00-nonsense") as session:
        trace_id = session.trace_id

    assert len(trace_id) == 32


def test_a_gateway_joins_a_call_without_starting_or_ending_the_session(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    gateway = Recorder(transport, tenant="acme", agent="gateway")
    with recorder.session("task") as session, session.tool_call("pay", {"n": 1}) as call:
        there = gateway.join_trace(call.traceparent, actor="clerk")
        there.policy_decided("allow", call_id=call.call_id)
    (decision,), (request,) = transport.of("policy_decided"), transport.of("tool_requested")

    assert transport.names.count("session_started") == 1
    assert decision["parent_span_id"] == request["span_id"]
    assert decision["trace_seq"] == 0
    assert decision["reporter"]["subject"] == "gateway"
    assert decision["actor"]["subject"] == "clerk"


def test_joining_without_a_valid_header_is_refused(recorder: Recorder) -> None:
    with pytest.raises(Rejected, match="names no trace"):
        recorder.join_trace("")


def test_request_and_execution_share_a_span_and_the_arguments_hash(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("task") as session:
        session.model_responded(
            "openai", proposed=[{"tool": "pay", "call_id": "c1", "arguments": '{"n": 1}'}]
        )
        call_id = session.tool_requested("pay", {"n": 1}, call_id="c1")
        session.tool_executed(call_id, "done", arguments={"n": 1})
    (asked,), (ran,) = transport.of("tool_requested"), transport.of("tool_executed")
    proposed = transport.of("model_responded")[0]["proposed"][0]

    assert asked["span_id"] == ran["span_id"] != session.span_id
    assert asked["parent_span_id"] == ran["parent_span_id"] == session.span_id
    assert (asked["call_id"], asked["call_id_source"]) == ("c1", "provider")
    assert (
        proposed["arguments_hash"]
        == asked["arguments_hash"]
        == ran["arguments_hash"]
        == keyed_hash(KEY, {"n": 1})
    )


def test_only_hashes_of_credentials_leave(transport: MemoryTransport, recorder: Recorder) -> None:
    with recorder.session("task") as session:
        given = session.credential_issued(
            "accessor-1", lease_id="lease-1", handles={"jti": "token-id-1"}
        )
        session.credential_rotated(given, successor_credential_id="accessor-2")
    (issued,), (rotated,) = transport.of("credential_issued"), transport.of("credential_rotated")

    assert issued["credential_id"] == rotated["credential_id"] == given
    assert given == keyed_text_hash(KEY, "accessor-1") == recorder.keyed_hash("accessor-1")
    assert issued["handles"] == [{"kind": "jti", "hash": keyed_text_hash(KEY, "token-id-1")}]
    for raw in (b"accessor-", b"lease-1", b"token-id-1"):
        assert not any(raw in sent.value for sent in transport.sent)


def test_a_credential_without_the_tenants_key_is_refused(transport: MemoryTransport) -> None:
    recorder = Recorder(transport, tenant="acme", agent="vault")

    with recorder.session("t") as session, pytest.raises(Rejected, match="pass key=TenantKey"):
        session.credential_used("accessor-1")


def test_secrets_outside_the_contents_are_taken_out_too(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("use password=hunter2") as session:
        session.context_retrieved(source_uri="https://u:hunter2@example.com/")
        session.policy_decided("deny", reason="token=hunter2", policy_id="p")
        session.prompt_submitted("x", attributes={"note": "password=hunter2"})
        session.tool_requested("x", resource="postgres://u:hunter2@db/x")
        session.outcome = "password=hunter2"

    assert not any(b"hunter2" in sent.value for sent in transport.sent)
    assert all(event.record["redactions"] for event in transport.events)


def test_an_oversized_event_names_the_limit_and_the_field_and_records_nothing(
    transport: MemoryTransport,
) -> None:
    recorder = Recorder(transport, tenant="acme", agent="clerk", capture="full")
    with (
        recorder.session("task") as session,
        pytest.raises(EventTooLarge, match=rf"the limit is {EVENT_BYTES_MAX}.*: content") as error,
    ):
        session.prompt_submitted("x" * EVENT_BYTES_MAX)

    assert error.value.reason.code == "too_large"
    assert transport.names == ["session_started", "session_ended"]


def test_the_largest_event_below_the_limit_is_recorded(transport: MemoryTransport) -> None:
    recorder = Recorder(transport, tenant="acme", agent="clerk", capture="full")
    with recorder.session("task") as session:
        session.prompt_submitted("x" * (EVENT_BYTES_MAX - 1000))

    assert EVENT_BYTES_MAX - 1000 < len(transport.sent[1].value) <= EVENT_BYTES_MAX


def test_a_misspelt_field_is_an_error(recorder: Recorder) -> None:
    session: Any = recorder.session("task")

    with session, pytest.raises(TypeError, match="tool_requested has no field sever"):
        session.tool_requested("x", sever="y")


def test_a_misspelt_session_field_or_setting_is_an_error(recorder: Recorder) -> None:
    make: Any = Recorder
    session: Any = recorder.session

    with pytest.raises(TypeError, match="sponser"):
        session("task", sponser="ann")
    with pytest.raises(TypeError, match="tennant"):
        make(MemoryTransport(), tenant="a", agent="b", tennant="c")


def test_events_recorded_while_kafka_is_away_say_that_they_are_late(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    with recorder.session("task") as session:
        transport.delayed = True
        session.prompt_submitted("x")
        transport.delayed = False

    assert [event.record["delayed"] for event in transport.events] == [False, True, False]


def test_identities_keep_what_proves_them(transport: MemoryTransport) -> None:
    proof = Evidence("jwt_svid", kid="k", expires_at=5, verified_by="mesh")
    who = Identity("workload", "spiffe://acme/clerk", "acme", "verified", proof)
    recorder = Recorder(transport, tenant="acme", agent="clerk", identity=who)
    with recorder.session("task"):
        pass
    actor = transport.events[0].record["actor"]

    assert actor["evidence"] == {
        "method": "jwt_svid", "kid": "k", "expires_at": 5, "verified_by": "mesh",
    }  # fmt: skip
    assert (actor["kind"], actor["assurance"]) == ("workload", "verified")


def test_an_end_that_can_not_be_recorded_does_not_hide_the_agents_own_error(
    transport: MemoryTransport, recorder: Recorder
) -> None:
    def fail() -> None:
        with recorder.session("task"):
            transport.close()
            raise LookupError("the agent's")

    with pytest.raises(LookupError):
        fail()


@pytest.mark.parametrize("tenant", ["", "x" * 64])
def test_a_tenant_of_the_wrong_length_is_refused_at_the_start(tenant: str) -> None:
    with pytest.raises(Fatal, match="1 to 63 bytes"):
        Recorder(MemoryTransport(), tenant=tenant, agent="clerk")


def test_the_environment_names_tenant_and_key() -> None:
    found = settings_from_environment(
        {
            "TRAILWEAVE_PRODUCER_TENANT": "acme",
            "TRAILWEAVE_PRODUCER_ENVIRONMENT": "staging",
            "TRAILWEAVE_PRODUCER_KEY_ID": "k1",
            "TRAILWEAVE_PRODUCER_KEY_SECRET": "s",
        }
    )

    assert found == {"tenant": "acme", "environment": "staging", "key": TenantKey("k1", b"s")}


def test_half_a_key_in_the_environment_is_refused() -> None:
    with pytest.raises(Fatal, match="set both"):
        settings_from_environment({"TRAILWEAVE_PRODUCER_KEY_ID": "k1"})


def test_without_kafka_and_transport_the_error_says_what_to_set() -> None:
    with pytest.raises(Fatal, match="set TRAILWEAVE_KAFKA"):
        kafka_from_environment({}, None)


def test_a_librdkafka_setting_that_does_not_exist_is_a_clear_error(tmp_path: Any) -> None:
    transport = kafka_from_environment(
        {
            "TRAILWEAVE_KAFKA": "127.0.0.1:1",
            "TRAILWEAVE_KAFKA_NO_SUCH": "1",
            "TRAILWEAVE_PRODUCER_SPOOL": str(tmp_path),
        },
        None,
    )

    with pytest.raises(Fatal, match=r"couldn't use the Kafka settings: .*no.such"):
        Recorder(transport, tenant="acme", agent="clerk")


def test_the_spool_lies_where_the_users_state_lies() -> None:
    assert str(default_spool({"XDG_STATE_HOME": "/state"})) == "/state/trailweave/spool"
