# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A session without a flaw, read in one pass in C: what `chain.read` does, faster.

Only in wheels that were built with a C compiler. It knows sessions of which every event is there
once, written by this version in the usual encoding, in its own topic. For any other it answers None,
and `chain` reads it from the start: so every answer given here is one that Python gives too.
"""

from cpython cimport array
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.dict cimport PyDict_GetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from trailweave.schemas.native.hashing cimport sha256
from trailweave.schemas.native.layout cimport Place
from trailweave.schemas.native.reading cimport Reader
from trailweave.schemas.native.values cimport VARINT_BYTES_MAX, is_trace_id, put_varint

from trailweave.stream_processors.lanes import OFFSET_BITS, OFFSET_MASK

cdef extern from "Python.h":
    int PyUnicode_Compare(object one, object other) noexcept
    long long PyLong_AsLongLong(object number) except? -1

# Comparisons look at Python's texts: called with the interpreter's lock held.
cdef extern from "<stdlib.h>":
    void qsort(
        void* base, size_t count, size_t size, int (*compare)(const void*, const void*) noexcept
    )

cdef int _OFFSET_BITS = OFFSET_BITS
cdef int64_t _OFFSET_MASK = OFFSET_MASK
#: Framing and fingerprint; then length and text of the event id.
cdef int RECORD_AT = 10
cdef int ID_ITEM_BYTES = 37
cdef int DIGEST_BYTES = 32
#: Times beyond it, thousands of years from now, are left to Python, whose numbers do not overflow.
cdef int64_t TIME_US_MAX = 1 << 60


cdef struct Entry:
    int64_t place
    int64_t recorded_ms
    Py_ssize_t index
    #: From here on, known once the event is read.
    int64_t occurred_at
    int64_t epoch
    #: -1: not known.
    int64_t sequence
    PyObject* producer
    PyObject* record
    Place id_item


cdef inline int compared(int64_t one, int64_t other) noexcept:
    return (one > other) - (one < other)


cdef int by_place(const void* a, const void* b) noexcept:
    return compared((<Entry**> a)[0].place, (<Entry**> b)[0].place)


cdef int by_id(const void* a, const void* b) noexcept:
    return memcmp((<Entry**> a)[0].id_item, (<Entry**> b)[0].id_item, ID_ITEM_BYTES)


cdef inline int by_producer(Entry* one, Entry* other) noexcept:
    cdef int found = 0
    if one.producer != other.producer:
        found = PyUnicode_Compare(<object> one.producer, <object> other.producer)
    return found if found else compared(one.epoch, other.epoch)


cdef int by_sequence(const void* a, const void* b) noexcept:
    """By producer, epoch, sequence and event id."""
    cdef Entry* one = (<Entry**> a)[0]
    cdef Entry* other = (<Entry**> b)[0]
    cdef int found = by_producer(one, other)
    if not found:
        found = compared(one.sequence, other.sequence)
    return found if found else by_id(a, b)


cdef int by_time(const void* a, const void* b) noexcept:
    """By time of occurrence, then as `by_sequence`."""
    cdef int found = compared((<Entry**> a)[0].occurred_at, (<Entry**> b)[0].occurred_at)
    return found if found else by_sequence(a, b)


cdef inline unsigned char* put_number(unsigned char* out, int64_t number) noexcept:
    """A number that is not negative, as Avro writes it."""
    return put_varint(out, <uint64_t> number << 1)


cdef inline unsigned char* put(unsigned char* out, bytes data) noexcept:
    memcpy(out, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return out + PyBytes_GET_SIZE(data)


cdef class _Type:
    """An event type: what names its schema, its name, its topic's index, its reader."""

    cdef uint64_t fingerprint
    cdef str name
    cdef int topic
    cdef Reader reader


cdef class SessionReader:
    """key, places, times, values -> what a `Chain` is made of, or None: see the module.

    That is its records by time and by producer, the evidence, the ranges of it, and the records that
    were ahead. `parts` are topic, partition, and what leaves and evidence begin with, by index of
    the topic; `types` the name, topic and reader by fingerprint.
    """

    cdef list parts
    cdef list types
    cdef int64_t ahead_us
    #: The longest beginnings of a leaf and of an item of evidence.
    cdef Py_ssize_t leaf_bytes
    cdef Py_ssize_t item_bytes

    def __init__(self, parts, types, ahead_us):
        cdef _Type one
        self.parts, self.types, self.ahead_us = list(map(tuple, parts)), [], ahead_us
        self.leaf_bytes = max(len(leaf) for _, _, leaf, _ in parts) + 8 + 2 * DIGEST_BYTES
        self.item_bytes = max(len(item) for _, _, _, item in parts) + 3 * VARINT_BYTES_MAX + 100
        topics = [part[0] for part in parts]
        for fingerprint, (name, topic, reader) in types.items():
            one = _Type.__new__(_Type)
            memcpy(&one.fingerprint, PyBytes_AS_STRING(fingerprint), 8)
            one.name, one.reader = name, reader
            one.topic = topics.index(topic) if topic in topics else -1
            self.types.append(one)

    def __call__(
        self, bytes key not None, array.array places not None, array.array times not None,
        list values not None
    ):
        cdef Py_ssize_t count = len(values), at
        cdef Place trace = <Place> PyBytes_AS_STRING(key)
        cdef unsigned char key_digest[32]
        cdef Entry* entries
        cdef Entry** order
        if not count or len(places) != count or len(times) != count:
            return None
        if not is_trace_id(trace, PyBytes_GET_SIZE(key)):
            return None
        sha256(trace, PyBytes_GET_SIZE(key), key_digest)
        entries = <Entry*> PyMem_Malloc(count * (sizeof(Entry) + sizeof(Entry*)))
        if entries == NULL:
            raise MemoryError
        order = <Entry**> (entries + count)
        try:
            for at in range(count):
                order[at] = &entries[at]
                entries[at].index = at
                entries[at].place = places.data.as_longlongs[at]
                entries[at].recorded_ms = times.data.as_longlongs[at]
            qsort(order, count, sizeof(Entry*), by_place)
            return self._read(values, order, count, key_digest)
        finally:
            PyMem_Free(entries)

    cdef tuple _read(
        self, list values, Entry** order, Py_ssize_t count, const unsigned char* key_digest
    ):
        cdef list held = []  # what entries point at
        cdef list records = [], ahead = []
        cdef dict groups = {}
        cdef Py_ssize_t at
        cdef int64_t ahead_us
        for at in range(count):
            record = self._event(values[order[at].index], order[at])
            if record is None:
                return None
            held.append(record)
            ahead_us = order[at].occurred_at - order[at].recorded_ms * 1000
            if ahead_us > self.ahead_us:
                ahead.append((record, ahead_us))
        proof = self._proof(values, order, count, key_digest)
        qsort(order, count, sizeof(Entry*), by_id)
        for at in range(1, count):
            if by_id(&order[at - 1], &order[at]) == 0:
                return None
        qsort(order, count, sizeof(Entry*), by_sequence)
        for at in range(count):
            if at == 0 or by_producer(order[at - 1], order[at]):
                group = []
                groups[<object> order[at].producer, order[at].epoch] = group
            group.append(<object> order[at].record)
        qsort(order, count, sizeof(Entry*), by_time)
        for at in range(count):
            records.append(<object> order[at].record)
        return records, groups, proof[0], proof[1], ahead

    cdef dict _event(self, value, Entry* entry):
        cdef uint64_t fingerprint
        cdef Place p
        cdef int at
        cdef _Type kind
        cdef dict record
        if not PyBytes_CheckExact(value) or PyBytes_GET_SIZE(value) < RECORD_AT + ID_ITEM_BYTES:
            return None
        p = <Place> PyBytes_AS_STRING(value)
        if p[0] != 0xC3 or p[1] != 1 or p[RECORD_AT] != 72:
            return None
        memcpy(&fingerprint, p + 2, 8)
        for kind in self.types:
            if kind.fingerprint == fingerprint:
                break
        else:
            return None
        if entry.place >> _OFFSET_BITS != kind.topic:
            return None
        entry.id_item = p + RECORD_AT
        for at in range(ID_ITEM_BYTES):
            if entry.id_item[at] > 127:
                return None
        record = kind.reader.read(value, RECORD_AT)
        if record is None or record["event_type"] != kind.name:
            return None
        entry.record = <PyObject*> record
        entry.producer = PyDict_GetItem(record, "producer_id")
        entry.occurred_at = PyLong_AsLongLong(record["occurred_at"])
        if not -TIME_US_MAX < entry.occurred_at < TIME_US_MAX:
            return None
        if not -TIME_US_MAX // 1000 < entry.recorded_ms < TIME_US_MAX // 1000:
            return None
        entry.epoch = PyLong_AsLongLong(record["producer_epoch"])
        sequence = record["trace_seq"]
        entry.sequence = -1 if sequence is None else PyLong_AsLongLong(sequence)
        return record

    cdef tuple _proof(
        self, list values, Entry** order, Py_ssize_t count, const unsigned char* key_digest
    ):
        """Put each record's place into it; the evidence, and the ranges of it."""
        cdef unsigned char* out = <unsigned char*> PyMem_Malloc(
            self.leaf_bytes + (count + 1) * self.item_bytes
        )
        if out == NULL:
            raise MemoryError
        try:
            return self._proven(values, order, count, key_digest, out)
        finally:
            PyMem_Free(out)

    cdef tuple _proven(
        self,
        list values,
        Entry** order,
        Py_ssize_t count,
        const unsigned char* key_digest,
        unsigned char* tail,
    ):
        cdef unsigned char* evidence = tail + self.leaf_bytes
        cdef unsigned char* out = evidence
        cdef unsigned char* behind = NULL
        cdef unsigned char digest[32]
        cdef list ranges = []
        cdef int64_t topic = -1, offset, first = 0
        cdef Py_ssize_t at, since = 0
        cdef int byte
        for at in range(count):
            if order[at].place >> _OFFSET_BITS != topic:
                if at:
                    ranges.append(_range(begin, first, offset, at - since))
                topic = order[at].place >> _OFFSET_BITS
                name, partition, leaf_begin, begin = <tuple> self.parts[topic]
                behind = put(tail, leaf_begin)
                first, since = order[at].place & _OFFSET_MASK, at
            offset = order[at].place & _OFFSET_MASK
            value = <bytes> values[order[at].index]
            for byte in range(8):
                behind[byte] = <unsigned char> (offset >> (56 - 8 * byte) & 255)
            memcpy(behind + 8, key_digest, DIGEST_BYTES)
            sha256(
                <Place> PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), behind + 8 + DIGEST_BYTES
            )
            sha256(tail, behind - tail + 8 + 2 * DIGEST_BYTES, digest)
            leaf = PyBytes_FromStringAndSize(<const char*> digest, DIGEST_BYTES)
            (<dict> order[at].record)["place"] = (name, partition, offset, leaf)
            out = put_number(put(out, begin), offset)
            memcpy(out, order[at].id_item, ID_ITEM_BYTES)
            out = put_number(out + ID_ITEM_BYTES, DIGEST_BYTES)
            memcpy(out, digest, DIGEST_BYTES)
            out += DIGEST_BYTES
        ranges.append(_range(begin, first, offset, count - since))
        return PyBytes_FromStringAndSize(<const char*> evidence, out - evidence), ranges


cdef bytes _range(bytes begin, int64_t first, int64_t last, Py_ssize_t count):
    cdef unsigned char numbers[30]
    cdef unsigned char* end = put_number(put_number(put_number(numbers, first), last), count)
    return begin + PyBytes_FromStringAndSize(<const char*> numbers, end - numbers)
