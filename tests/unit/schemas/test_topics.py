"""The topics as data."""

import pytest
from trailweave.schemas import codec, events
from trailweave.schemas.errors import Fatal
from trailweave.schemas.topics import Topic, load_topics

TOPICS = {topic.name: topic for topic in load_topics()}
DAY_MS = 24 * 3_600_000


def _event_topics() -> list[Topic]:
    return [TOPICS[name] for name in events.event_topics()]


def test_every_topic_constant_is_described() -> None:
    constants = {value for name, value in vars(events).items() if name.endswith("_TOPIC")}

    assert set(TOPICS) == constants | set(events.event_topics())


def test_all_parts_of_a_lane_share_one_count() -> None:
    lanes = {topic.name for topic in TOPICS.values() if topic.in_lanes}

    assert lanes == {
        *events.event_topics(),
        events.SESSIONS_TOPIC,
        events.FINDINGS_TOPIC,
        events.OPEN_SESSIONS_TOPIC,
    }
    assert len({TOPICS[name].partitions for name in lanes}) == 1


def test_asking_for_lanes_changes_only_the_topics_in_lanes() -> None:
    changed = load_topics(partitions=7)

    assert {topic.partitions for topic in changed if topic.in_lanes} == {7}
    assert {topic.partitions for topic in changed if not topic.in_lanes} == {1}


@pytest.mark.parametrize("lanes", [0, -1, 10_001])
def test_a_number_of_lanes_that_no_cluster_has_is_refused(lanes: int) -> None:
    with pytest.raises(Fatal, match="lanes"):
        load_topics(partitions=lanes)


def test_the_broker_sets_every_timestamp() -> None:
    assert {topic.config["message.timestamp.type"] for topic in TOPICS.values()} == {
        "LogAppendTime"
    }


def test_event_topics_are_hashed_by_trace_as_java_clients_hash() -> None:
    assert {topic.partitioner for topic in _event_topics()} == {"murmur2_random"}
    assert {topic.config["cleanup.policy"] for topic in _event_topics()} == {"delete"}


def test_the_largest_event_fits_its_topic_and_its_dead_letter() -> None:
    dead_letters = TOPICS[events.DEAD_LETTERS_TOPIC]

    for topic in _event_topics():
        assert topic.message_bytes_max > codec.EVENT_BYTES_MAX
        assert dead_letters.message_bytes_max > topic.message_bytes_max
    assert TOPICS[events.OPEN_SESSIONS_TOPIC].message_bytes_max > codec.EVENT_BYTES_MAX


def test_only_chunks_and_schemas_are_compacted() -> None:
    compacted = {topic.name for topic in TOPICS.values() if topic.compacted}

    assert compacted == {events.OPEN_SESSIONS_TOPIC, events.SCHEMAS_TOPIC}


def test_a_tombstone_outlives_any_recovery() -> None:
    config = TOPICS[events.OPEN_SESSIONS_TOPIC].config

    assert int(config["delete.retention.ms"]) >= DAY_MS


def test_the_first_publication_of_a_schema_outlives_what_can_be_read_of_its_events() -> None:
    lag_ms = int(TOPICS[events.SCHEMAS_TOPIC].config["min.compaction.lag.ms"])

    for topic in TOPICS.values():
        # A chunk names no schemas of events: who reads one has them from the events' topics.
        if topic.schemas and not topic.compacted and topic.name != events.DEAD_LETTERS_TOPIC:
            kept_ms = int(topic.config["retention.ms"]) + int(topic.config["segment.ms"])
            assert lag_ms > kept_ms + DAY_MS, topic.name


def test_every_topic_says_who_writes_and_who_reads_it() -> None:
    for topic in TOPICS.values():
        assert topic.description
        assert topic.key
        assert topic.writers
        assert topic.readers
