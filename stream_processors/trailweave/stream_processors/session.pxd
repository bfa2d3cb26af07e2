cdef class Session:
    cdef public bytes key
    cdef public list first
    cdef public list values
    cdef public object places
    cdef public object times
    cdef public Py_ssize_t size
    cdef public Py_ssize_t promoted
    cdef public Py_ssize_t away
    cdef public Py_ssize_t away_bytes
    cdef public dict chunks
    cdef public long long outside_ms
    cdef public bint foreign
    cdef public long long last_ms
    cdef public bint closed
    cdef public long long ended_ms
    cdef public object expected_total
    cdef public dict expected
    cdef public dict pending
    cdef public set decided
    cdef public dict unknown
    cdef public long long watched_ms
    cdef public long long looked_ms
    cdef public Py_ssize_t looked_events
    cdef public object told
    cdef public long long scheduled_ms
