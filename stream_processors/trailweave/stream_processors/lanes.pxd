cimport cython
from trailweave.stream_processors.session cimport Session

@cython.locals(start=Py_ssize_t, end=Py_ssize_t, length=Py_ssize_t)
cpdef bytes group_key(bytes key, bytes value)

cdef class Lane:
    cdef public object index
    cdef public list positions
    cdef public object times
    cdef public object decoder
    cdef public object number
    cdef public object committed_number
    cdef public dict sessions
    cdef public list refused
    cdef public dict cuts
    cdef public list newest_ms
    cdef public object history
    cdef public object sessions_end
    cdef public dict unknown
    cdef public Py_ssize_t held_events
    cdef public Py_ssize_t held_bytes
    cdef public bint moved
    cdef public list _lows
    cdef public list _deadlines
    cdef public object _outside
    cdef public dict _ended
    cdef public dict _stirred
    cdef public object _serial
    cdef public dict _special

    @cython.locals(session=Session, group=bytes)
    cpdef fold(self, Py_ssize_t topic, long long offset, long long recorded_ms, bytes key, bytes value)
    cpdef Session _open(self, bytes group, long long recorded_ms)
