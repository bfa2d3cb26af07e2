-- The tables and views of Trailweave, in the order in which they are created.
--
-- tables.py fills in what stands behind dollar signs: engine family, retention, settings.
-- A row is one Kafka record (handles: one of several of a record), named by (topic_id, partition,
-- offset, ordinal); topic_id is the topic's UUID, because a recreated topic counts from 0 again.
-- Partitions and expiry go by recorded_at, the broker's time: a producer's clock moves neither.
-- '' and 0 stand for absent; `record` holds the exact bytes as they were on Kafka.
-- The engine collapses true repeats only, for every sorting key ends in the record's place.
-- A column with DEFAULT `path` takes what ClickHouse's Avro reader finds at that path of a row;
-- tables.py adds the paths as EPHEMERAL columns, so that they can be inserted.

CREATE TABLE IF NOT EXISTS events ${on_cluster}
(
    topic LowCardinality(String) COMMENT 'Kafka topic',
    topic_id UUID COMMENT 'the topic''s UUID',
    partition Int32 COMMENT 'Kafka partition',
    offset Int64 COMMENT 'Kafka offset',
    ordinal UInt32 DEFAULT 0 COMMENT 'always 0: one row per record',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time',
    event_type LowCardinality(String) COMMENT 'which event',

    event_id String COMMENT 'UUID; repeated when a producer sent the event twice',
    trace_id String COMMENT 'the Kafka key, 32 hex digits',
    tenant LowCardinality(String) COMMENT 'who the record belongs to',
    producer_id LowCardinality(String) COMMENT 'who wrote it',
    producer_epoch Int64 COMMENT 'start of that process in microseconds',
    trace_seq Nullable(Int64) COMMENT 'dense from 0 per producer, epoch and trace',
    occurred_at DateTime64(6, 'UTC') COMMENT 'when it happened, by the reporter''s clock',
    span_id String COMMENT 'W3C parent-id of this step',
    parent_span_id String COMMENT 'span this step belongs to',
    agent_id LowCardinality(String) COMMENT 'gen_ai.agent.id',
    agent_version LowCardinality(String) COMMENT 'gen_ai.agent.version',
    actor_kind LowCardinality(String) COMMENT 'unknown, human, agent, workload, service_account',
    actor_subject LowCardinality(String) COMMENT 'the identity that acts',
    actor_assurance LowCardinality(String) COMMENT 'asserted or verified',
    reporter_kind LowCardinality(String) COMMENT 'as actor_kind',
    reporter_subject LowCardinality(String) COMMENT 'the identity that says so',
    sponsor_subject LowCardinality(String) DEFAULT `sponsor.Identity.subject`
        COMMENT 'the human on whose behalf',
    agent_owner LowCardinality(String) COMMENT 'who answers for the agent',
    workflow_id String COMMENT 'work that spans traces',
    parent_trace_id String COMMENT 'the trace that started this one',
    task_id String COMMENT 'task within the workflow',
    conversation_id String COMMENT 'gen_ai.conversation.id',
    environment LowCardinality(String) COMMENT 'deployment.environment.name',
    purpose LowCardinality(String) COMMENT 'production, test, red_team',
    data_class LowCardinality(String) COMMENT 'public, internal, confidential, restricted, secret',
    data_categories Array(LowCardinality(String)) COMMENT 'pii, phi, pci, ...',
    capture LowCardinality(String) COMMENT 'metadata, hashed, redacted, full',
    delayed Bool COMMENT 'spooled or ingested late',
    correlation_how LowCardinality(String) COMMENT 'exact, handle, heuristic, uncorrelated',

    call_id String DEFAULT `body.own.call_id` COMMENT 'gen_ai.tool.call.id',
    tool LowCardinality(String) DEFAULT `body.own.tool` COMMENT 'gen_ai.tool.name',
    server LowCardinality(String) DEFAULT `body.own.server` COMMENT 'MCP server or API',
    provider LowCardinality(String) DEFAULT `body.own.provider` COMMENT 'gen_ai.provider.name',
    request_model LowCardinality(String) DEFAULT `body.own.request_model`
        COMMENT 'gen_ai.request.model',
    model LowCardinality(String) DEFAULT `body.own.model` COMMENT 'gen_ai.response.model',
    model_version LowCardinality(String) DEFAULT `body.own.model_version`
        COMMENT 'version or digest the provider reports',
    input_tokens Int64 DEFAULT `body.own.input_tokens` COMMENT 'gen_ai.usage.input_tokens',
    output_tokens Int64 DEFAULT `body.own.output_tokens` COMMENT 'gen_ai.usage.output_tokens',
    cost_usd Float64 DEFAULT `body.own.cost_usd` COMMENT 'what the model call or the session cost',
    credential_id String DEFAULT `body.own.credential_id` COMMENT 'keyed hash of the accessor',
    credential_kind LowCardinality(String) DEFAULT `body.own.credential_kind`
        COMMENT 'vault_token, jwt_svid, ...',
    scope_exercised LowCardinality(String) DEFAULT `body.own.scope_exercised`
        COMMENT 'what was used of the credential',
    expires_at Nullable(DateTime64(6, 'UTC')) DEFAULT `body.own.expires_at`
        COMMENT 'end of a credential or of an approval request',
    decision_id String DEFAULT `body.own.decision_id` COMMENT 'the engine''s id of the decision',
    policy_id LowCardinality(String) DEFAULT `body.own.policy_id` COMMENT 'policy or rule path',
    mode LowCardinality(String) DEFAULT `body.own.mode` COMMENT 'enforced or dry_run',
    effect LowCardinality(String) DEFAULT `body.own.effect`
        COMMENT 'of a decision or an approval: allow, deny, modify, step_up',
    approval_id String DEFAULT `body.own.approval_id` COMMENT 'id of the approval',
    approval_kind LowCardinality(String) DEFAULT `body.own.approval_kind`
        COMMENT 'approval, override, escalation, exception',
    approver_subject LowCardinality(String) DEFAULT `body.own.approver_subject`
        COMMENT 'who decided an approval',
    requester_subject LowCardinality(String)
        DEFAULT `body.own.requester_subject` || `body.own.requested_by.Identity.subject`
        COMMENT 'who asked for an approval',
    guardrail LowCardinality(String) DEFAULT `body.own.guardrail` COMMENT 'name of the guardrail',
    verdict LowCardinality(String) DEFAULT `body.own.verdict`
        COMMENT 'of the guardrail: pass, flag, block, ...',
    status LowCardinality(String) DEFAULT `body.own.status`
        COMMENT 'ok, error, denied, timeout, cancelled, unknown',
    outcome LowCardinality(String) DEFAULT `body.own.outcome` COMMENT 'what came of the session',
    error LowCardinality(String) DEFAULT `body.own.error` COMMENT 'error.type',
    reason String DEFAULT `body.own.reason` COMMENT 'why it was decided so',
    action LowCardinality(String) DEFAULT `body.own.action`
        COMMENT 'read, create, update, delete, execute, ...',
    operation LowCardinality(String) DEFAULT `body.own.operation`
        COMMENT 'of a memory access or a downstream system',
    resource String DEFAULT `body.own.resource` COMMENT 'what it acts on',
    store LowCardinality(String) DEFAULT `body.own.store`
        COMMENT 'what was read into the context, or the memory',
    trust LowCardinality(String) DEFAULT `body.own.trust` COMMENT 'unknown, trusted, untrusted',
    source_uri String DEFAULT `body.own.source_uri` COMMENT 'where the context came from',
    system LowCardinality(String) DEFAULT `body.own.system` COMMENT 'downstream system',
    principal LowCardinality(String) DEFAULT `body.own.principal`
        COMMENT 'as whom the downstream system saw it',
    request_id String DEFAULT `body.own.request_id`
        COMMENT 'keyed hash of the downstream request id',
    arguments_hash String DEFAULT `body.own.arguments_hash`
        COMMENT 'keyed hash of a call''s arguments',
    content_hash String DEFAULT `body.own.content_hash` COMMENT 'keyed hash of the content',
    side_effect Bool DEFAULT `body.own.side_effect` COMMENT 'changes something outside the agent',

    record_hash UInt64 DEFAULT sipHash64(record)
        COMMENT 'sipHash64 of the record: same event_id and other bytes are a conflict',
    record String COMMENT 'the exact bytes, framing included; the only place that holds content'
        CODEC(ZSTD(1)) TTL toDate(recorded_at) + INTERVAL ${content_days} DAY,
${ephemeral}
    INDEX by_event_id event_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_call_id call_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_credential_id credential_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_actor actor_subject TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX by_agent agent_id TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX by_type event_type TYPE set(32) GRANULARITY 4,
    -- What the load worker verifies and `account` counts, without reading the rows themselves.
    PROJECTION by_place (
        SELECT topic_id, partition, offset, ordinal ORDER BY topic_id, partition, offset
    )
)
ENGINE = ${replacing}
PARTITION BY toDate(recorded_at)
PRIMARY KEY (tenant, trace_id, occurred_at)
ORDER BY (tenant, trace_id, occurred_at, event_id, topic_id, partition, offset, ordinal)
TTL toDate(recorded_at) + INTERVAL ${keep_days} DAY${move}
SETTINGS ${settings};

CREATE TABLE IF NOT EXISTS chains ${on_cluster}
(
    topic LowCardinality(String) COMMENT 'the sessions topic',
    topic_id UUID COMMENT 'the topic''s UUID',
    partition Int32 COMMENT 'Kafka partition: the lane',
    offset Int64 COMMENT 'Kafka offset: revisions of one session are ordered by it',
    ordinal UInt32 DEFAULT 0 COMMENT 'always 0: one row per record',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time',
    w LowCardinality(String) COMMENT 'header w: join or reassess',
    kind LowCardinality(String) COMMENT 'header kind: chain, fragment or open',

    tenant LowCardinality(String) COMMENT 'who it belongs to',
    trace_id String COMMENT 'the trace',
    state LowCardinality(String) COMMENT 'open, closed or fragment',
    close_reason LowCardinality(String) COMMENT 'none, counts, grace, idle, reassess',
    writer LowCardinality(String) COMMENT 'join or reassess',
    part Int64 COMMENT '(tenant, trace_id, part) names this record',
    judged_at DateTime64(3, 'UTC') COMMENT 'lane clock when it was made',
    first_recorded_at DateTime64(3, 'UTC') COMMENT 'broker time of the first event',
    last_recorded_at DateTime64(3, 'UTC') COMMENT 'broker time of the last event',
    started_at Nullable(DateTime64(6, 'UTC')) COMMENT 'occurred_at of session_started',
    ended_at Nullable(DateTime64(6, 'UTC')) COMMENT 'occurred_at of the root session_ended',
    events Int64 COMMENT 'distinct events',
    duplicates Int64 COMMENT 'repeated events, left out',
    dead_lettered Int64 COMMENT 'events of this session in the dead letters',
    counts Map(String, Int64) COMMENT 'events by type',
    producers Array(Tuple(
        producer_id String, epoch Int64, events Int64, first_seq Nullable(Int64),
        last_seq Nullable(Int64), gaps Array(Int64), expected Nullable(Int64)
    )) COMMENT 'sequence ranges',
    identities Array(String) COMMENT 'acting identities',
    sponsors Array(String) COMMENT 'humans on whose behalf',
    agents Array(String) COMMENT 'agent ids',
    models Array(String) COMMENT 'model@version',
    tools Array(String) COMMENT 'tools called',
    credentials Array(String) COMMENT 'credential ids',
    pairs Array(Tuple(
        credential_id String, agent_id Nullable(String), task_id Nullable(String),
        scope Nullable(String), first_at DateTime64(6, 'UTC'), last_at DateTime64(6, 'UTC')
    )) COMMENT 'credential x agent x task x scope',
    workload_sponsors Array(Tuple(workload String, sponsor String)) COMMENT 'workload x sponsor',
    approvals Array(Tuple(
        approval_id String, by String, approval_kind String, effect String,
        requested_at Nullable(DateTime64(6, 'UTC')), decided_at DateTime64(6, 'UTC')
    )) COMMENT 'approvals with times',
    input_tokens Int64 COMMENT 'sum',
    output_tokens Int64 COMMENT 'sum',
    cost_usd Float64 COMMENT 'sum',
    tool_calls Int64 COMMENT 'calls that ran',
    data_class LowCardinality(String) COMMENT 'highest seen',
    environment LowCardinality(String) COMMENT 'of the root session',
    purpose LowCardinality(String) COMMENT 'of the root session',
    workflow_id String COMMENT 'work that spans traces',
    parent_trace_id String COMMENT 'the trace that started this one',
    correlation LowCardinality(String) COMMENT 'least sure of its events',
    status LowCardinality(String) COMMENT 'of session_ended',
    outcome String COMMENT 'of session_ended',
    completeness LowCardinality(String) COMMENT 'complete, incomplete or unprovable',
    missing Array(Tuple(what String, subject String, detail String)) COMMENT 'what is missing',
    findings Array(Tuple(
        finding_id String, rule String, severity LowCardinality(String), subject String
    )) COMMENT 'what was found',
    not_evaluable Array(String) COMMENT 'rules that lacked an input nobody had promised',
    highest_severity LowCardinality(String) COMMENT 'of the findings',
    findings_hash String COMMENT 'SHA-256 over the sorted finding ids, 32 bytes',
    rules_version LowCardinality(String) COMMENT 'version of the rules',
    rules_config_hash LowCardinality(String) COMMENT 'hash of rules.toml',
    handles Array(Tuple(kind String, hash String, event_id String)) COMMENT 'as in table handles',
    root String COMMENT 'RFC 6962 root over the leaves, 32 bytes',
    evidence Array(Tuple(
        topic LowCardinality(String), partition Int32, offset Int64, event_id String, leaf String
    )) COMMENT 'where every event lies, up to a limit' CODEC(ZSTD(3)),
    evidence_ranges Array(Tuple(
        topic LowCardinality(String), partition Int32, first Int64, last Int64, events Int64
    )) COMMENT 'ranges of offsets',

    INDEX by_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    PROJECTION by_place (
        SELECT topic_id, partition, offset, ordinal ORDER BY topic_id, partition, offset
    )
)
ENGINE = ${replacing}
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (tenant, first_recorded_at, trace_id, topic_id, partition, offset, ordinal)
TTL toDate(recorded_at) + INTERVAL ${keep_days} DAY${move}
SETTINGS ${settings};

CREATE TABLE IF NOT EXISTS findings ${on_cluster}
(
    topic LowCardinality(String) COMMENT 'the findings topic',
    topic_id UUID COMMENT 'the topic''s UUID',
    partition Int32 COMMENT 'Kafka partition',
    offset Int64 COMMENT 'Kafka offset: states of one finding are ordered by it',
    ordinal UInt32 DEFAULT 0 COMMENT 'always 0: one row per record',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time',

    finding_id String COMMENT 'UUIDv5 of tenant, trace, rule and subject',
    trace_id String COMMENT 'the chain; empty for a fleet-level finding',
    tenant LowCardinality(String) COMMENT 'who it belongs to',
    rule LowCardinality(String) COMMENT 'name of the rule',
    state LowCardinality(String) COMMENT 'open or retracted',
    severity LowCardinality(String) COMMENT 'none, low, medium, high, critical',
    subject String COMMENT 'what it is about',
    summary String COMMENT 'one sentence',
    expected String COMMENT 'what should have been there',
    next_step String COMMENT 'what to do now',
    controls Array(LowCardinality(String)) COMMENT 'control ids',
    evidence Array(Tuple(
        topic LowCardinality(String), partition Int32, offset Int64, event_id String, leaf String
    )) COMMENT 'the events it rests on',
    chain_state LowCardinality(String) COMMENT 'state of the chain that was judged',
    agent_id LowCardinality(String) COMMENT 'agent',
    identity LowCardinality(String) COMMENT 'acting identity',
    sponsor LowCardinality(String) COMMENT 'on whose behalf',
    detected_at DateTime64(3, 'UTC') COMMENT 'lane clock when judged',
    rules_version LowCardinality(String) COMMENT 'version of the rules',
    rules_config_hash LowCardinality(String) COMMENT 'hash of rules.toml',

    INDEX by_trace_id trace_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_finding_id finding_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_chain_state chain_state TYPE set(4) GRANULARITY 1,
    PROJECTION by_place (
        SELECT topic_id, partition, offset, ordinal ORDER BY topic_id, partition, offset
    )
)
ENGINE = ${replacing}
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (tenant, detected_at, rule, finding_id, topic_id, partition, offset, ordinal)
TTL toDate(recorded_at) + INTERVAL ${keep_days} DAY${move}
SETTINGS ${settings};

CREATE TABLE IF NOT EXISTS handles ${on_cluster}
(
    topic LowCardinality(String) COMMENT 'the sessions topic',
    topic_id UUID COMMENT 'the topic''s UUID',
    partition Int32 COMMENT 'Kafka partition',
    offset Int64 COMMENT 'offset of the chain record',
    ordinal UInt32 COMMENT 'place in the chain record''s list of handles',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time',
    tenant LowCardinality(String) COMMENT 'who it belongs to',
    kind LowCardinality(String) COMMENT 'accessor, lease_id, jti, kid, request_id, ...',
    hash String COMMENT 'keyed hash; never the value itself',
    trace_id String COMMENT 'the chain it was seen in',
    event_id String COMMENT 'the event that carries it',

    PROJECTION by_place (
        SELECT topic_id, partition, offset, ordinal ORDER BY topic_id, partition, offset
    )
)
ENGINE = ${replacing}
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (tenant, kind, hash, trace_id, event_id, topic_id, partition, offset, ordinal)
TTL toDate(recorded_at) + INTERVAL ${keep_days} DAY${move}
SETTINGS ${settings};

CREATE TABLE IF NOT EXISTS heartbeats ${on_cluster}
(
    topic LowCardinality(String) COMMENT 'the heartbeats topic',
    topic_id UUID COMMENT 'the topic''s UUID',
    partition Int32 COMMENT 'Kafka partition',
    offset Int64 COMMENT 'Kafka offset',
    ordinal UInt32 DEFAULT 0 COMMENT 'always 0: one row per record',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time',
    producer_id String COMMENT 'who',
    producer_epoch Int64 COMMENT 'start of the process in microseconds',
    tenant LowCardinality(String) COMMENT 'who it belongs to',
    heartbeat_seq Int64 COMMENT 'dense from 0',
    sent_at DateTime64(6, 'UTC') COMMENT 'by the producer''s clock',
    interval_s Float64 COMMENT 'when the next one is due',
    recorded Int64 COMMENT 'events accepted from the caller',
    delivered Int64 COMMENT 'acknowledged by Kafka',
    buffered Int64 COMMENT 'in memory',
    spooled Int64 COMMENT 'on disk',
    failed Int64 COMMENT 'refused by Kafka for good',
    host String COMMENT 'host.name',
    version LowCardinality(String) COMMENT 'version of the producer library',
    final Bool COMMENT 'the producer ended in order',

    PROJECTION by_place (
        SELECT topic_id, partition, offset, ordinal ORDER BY topic_id, partition, offset
    )
)
ENGINE = ${replacing}
PARTITION BY toYYYYMM(recorded_at)
ORDER BY (tenant, producer_id, producer_epoch, heartbeat_seq, topic_id, partition, offset, ordinal)
TTL toDate(recorded_at) + INTERVAL ${keep_days} DAY${move}
SETTINGS ${settings};

-- topic, partition and offset are those of the rejected record; where the letter itself lies is
-- letter_*. Several letters may tell of one record: `dead_letters_distinct` has one of them.
CREATE TABLE IF NOT EXISTS dead_letters ${on_cluster}
(
    letter_topic LowCardinality(String) COMMENT 'the dead-letter topic',
    letter_topic_id UUID COMMENT 'its UUID',
    letter_partition Int32 COMMENT 'its partition',
    letter_offset Int64 COMMENT 'its offset',
    ordinal UInt32 DEFAULT 0 COMMENT 'always 0: one row per record',
    letter_recorded_at DateTime64(3, 'UTC') COMMENT 'broker time of the letter',

    topic LowCardinality(String) COMMENT 'topic or file of the rejected record',
    partition Int32 COMMENT 'its partition; -1 for a file',
    offset Int64 COMMENT 'its offset; position in the file',
    stage LowCardinality(String) COMMENT 'join, load, ingest:otlp, ...',
    code LowCardinality(String) COMMENT 'short reason',
    reason String COMMENT 'one sentence',
    recorded_at DateTime64(3, 'UTC') COMMENT 'broker time of the rejected record',
    tenant LowCardinality(String) COMMENT 'where it could be read',
    trace_id String COMMENT 'where it could be read',
    key String COMMENT 'original key',
    value String COMMENT 'original bytes' CODEC(ZSTD(3))
        TTL toDate(letter_recorded_at) + INTERVAL ${content_days} DAY,

    PROJECTION by_place (
        SELECT letter_topic_id, letter_partition, letter_offset, ordinal
        ORDER BY letter_topic_id, letter_partition, letter_offset
    )
)
ENGINE = ${replacing}
PARTITION BY toYYYYMM(letter_recorded_at)
ORDER BY (
    topic, partition, offset, stage, letter_topic_id, letter_partition, letter_offset, ordinal
)
TTL toDate(letter_recorded_at) + INTERVAL ${keep_days} DAY${letter_move}
SETTINGS ${settings};

-- Each event once: a producer's repeats and the load worker's residue collapse, two records with
-- one event_id and different bytes (a conflict) both stay.
CREATE OR REPLACE VIEW events_distinct ${on_cluster} AS
SELECT * FROM events
ORDER BY tenant, trace_id, event_id, recorded_at, topic_id, partition, offset
LIMIT 1 BY tenant, trace_id, event_id, record_hash;

-- One row per session. The newest record of reassess, unless the session itself closed after what that
-- covers; else the join's: the newest of the session itself, else its newest fragment, one with events
-- before one of dead letters only. `part` says what a record of reassess covers: offsets don't, for a
-- fragment may have come between its reading and its writing.
-- `reassessment_pending`: the session has a fragment, and a part that reassess has not yet taken in.
CREATE OR REPLACE VIEW chains_latest ${on_cluster} AS
SELECT
    *,
    max(if(w = 'join' AND kind != 'open', part, -1)) OVER session
        > max(if(w = 'reassess', part, -1)) OVER session
        AND max(kind = 'fragment') OVER session AS reassessment_pending
FROM chains
WINDOW session AS (PARTITION BY tenant, trace_id)
ORDER BY
    tenant, trace_id,
    w = 'reassess' AND part >= max(if(w = 'join' AND kind = 'chain', part, -1)) OVER session DESC,
    w = 'join' DESC, kind != 'fragment' DESC, events > 0 DESC, offset DESC
LIMIT 1 BY tenant, trace_id;

-- One row per finding: its latest state. Never count the table itself. Offsets order the states in
-- one partition, and writers use one partition for a finding; broker times, which may step back,
-- order only what a change of the number of lanes, or a topic made anew, has put into another.
-- What was found while a session was open holds while its newest record is open or says it too.
-- Records and findings of one look have one time, so a record that comes before its findings, or
-- behind them, takes nothing back.
CREATE OR REPLACE VIEW findings_latest ${on_cluster} AS
SELECT * EXCEPT (judged_at, found) REPLACE (
    if(chain_state = 'open' AND judged_at >= detected_at AND NOT has(found, finding_id),
       'retracted', state) AS state
)
FROM
(
    SELECT * FROM
    (
        SELECT * FROM findings
        ORDER BY tenant, trace_id, rule, finding_id, topic_id, partition, offset DESC
        LIMIT 1 BY tenant, trace_id, rule, finding_id, topic_id, partition
    )
    ORDER BY tenant, trace_id, rule, finding_id, recorded_at DESC, topic_id, partition
    -- The id is made of the other three; naming them lets a filter on any reach the table.
    LIMIT 1 BY tenant, trace_id, rule, finding_id
) AS latest
LEFT JOIN
(
    SELECT
        tenant, trace_id,
        argMax(judged_at, offset) AS judged_at,
        argMax(arrayMap(f -> f.finding_id, findings), offset) AS found
    FROM chains
    WHERE w = 'join' AND kind != 'fragment'
        AND (tenant, trace_id) IN
            (SELECT tenant, trace_id FROM findings WHERE chain_state = 'open')
    GROUP BY tenant, trace_id
) AS newest USING (tenant, trace_id);

CREATE OR REPLACE VIEW dead_letters_distinct ${on_cluster} AS
SELECT * FROM dead_letters
ORDER BY topic, partition, offset, stage, letter_offset
LIMIT 1 BY topic, partition, offset, stage;
