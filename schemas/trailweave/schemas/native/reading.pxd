from trailweave.schemas.native.layout cimport Layout, Place

cdef Place skip_text(Place p, Place end) except? NULL
cdef Place skip(Layout layout, int at, Place p, Place end) except? NULL

cdef enum Task:
    PASS, TAKE, RUN

cdef struct Step:
    Task task
    #: The field's node; the first and the last of a run.
    int first
    int last

cdef class Reader:
    cdef Layout layout
    cdef Step* steps
    cdef int count
    #: The wanted fields without values.
    cdef dict empty
    #: By step: the bytes of the run met last, names and values of its wanted fields in turn, and
    #: those of all runs that are kept, by their bytes.
    cdef list last_run
    cdef list last_values
    cdef list kept

    cdef dict read(self, bytes buf, Py_ssize_t start)
    cdef Place _run(self, int number, dict record, Place p, Place end) except? NULL
    cdef object _met(self, int number, Place begin, Place end)
    cdef tuple _values(self, Step* step, Place p, Place end)
