# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A reader of one Avro schema: what `compiled` does, faster; see the package."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Copy, PyDict_SetItem
from cpython.list cimport PyList_Append
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from trailweave.schemas.native.layout cimport (
    BOOLEAN, BYTES, DOUBLE, ENUM, INT, LONG, MAP, NULLABLE, RECORD, STRING, Layout, Node, Place
)
from trailweave.schemas.native.values cimport is_ascii, read_count, read_number, read_size

from trailweave.schemas.compiled import REPEATING

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    object PyLong_FromLongLong(long long number)

#: Repeated runs that are kept, of one kind: what a fleet repeats; above it, all start anew.
cdef int RUNS_MAX = 4096
cdef uint64_t INT_MAX = 0xFFFFFFFF


# --- values: NULL for a place means that Python must say what is there ---------------------------


cdef object text(Place p, Py_ssize_t size):
    """None for bytes that are not UTF-8."""
    if is_ascii(p, size):
        made = PyUnicode_New(size, 127)
        memcpy(PyUnicode_DATA(made), p, size)
        return made
    try:
        return PyUnicode_DecodeUTF8(<char*> p, size, NULL)
    except UnicodeDecodeError:
        return None


cdef Place skip_text(Place p, Place end) except? NULL:
    cdef Py_ssize_t size
    p = read_size(p, end, &size)
    if p == NULL or (not is_ascii(p, size) and text(p, size) is None):
        return NULL
    return p + size


cdef Place skip(Layout layout, int at, Place p, Place end) except? NULL:
    """Behind one value, which is as sound as if it had been read."""
    cdef Node* node = &layout.nodes[at]
    cdef uint64_t number
    cdef Py_ssize_t size
    cdef int field
    if p >= end:
        return NULL
    if node.kind == NULLABLE:
        if p[0] == 2:
            return skip(layout, node.inner, p + 1, end)
        return p + 1 if p[0] == 0 else NULL
    if node.kind == STRING:
        return skip_text(p, end)
    if node.kind == LONG:
        return read_number(p, end, &number)
    if node.kind == INT:
        p = read_number(p, end, &number)
        return p if p != NULL and number <= INT_MAX else NULL
    if node.kind == ENUM:
        return p + 1 if not p[0] & 129 and p[0] >> 1 < node.count else NULL
    if node.kind == BOOLEAN:
        return p + 1 if p[0] < 2 else NULL
    if node.kind == BYTES:
        p = read_size(p, end, &size)
        return p + size if p != NULL else NULL
    if node.kind == DOUBLE:
        return p + 8 if end - p >= 8 else NULL
    if node.kind == RECORD:
        for field in range(node.count):
            p = skip(layout, node.inner + field, p, end)
            if p == NULL:
                return NULL
        return p
    while True:
        p = read_count(p, end, &size)
        if p == NULL or size == 0:
            return p
        for size in range(size, 0, -1):
            if node.kind == MAP:
                p = skip_text(p, end)
                if p == NULL:
                    return NULL
            p = skip(layout, node.inner, p, end)
            if p == NULL:
                return NULL


cdef object read_text(Place* at, Place end):
    cdef Py_ssize_t size
    cdef Place p = read_size(at[0], end, &size)
    at[0] = NULL
    if p == NULL:
        return None
    made = text(p, size)
    if made is not None:
        at[0] = p + size
    return made


cdef object read_value(Layout layout, int node_at, Place* at, Place end):
    """One value; `at` moves behind it, to NULL for what is left to Python."""
    cdef Node* node = &layout.nodes[node_at]
    cdef Place p = at[0]
    cdef uint64_t number
    cdef Py_ssize_t size
    cdef double real
    at[0] = NULL
    if p >= end:
        return None
    if node.kind == NULLABLE:
        if p[0] == 0 or p[0] == 2:
            at[0] = p + 1
        return read_value(layout, node.inner, at, end) if p[0] == 2 else None
    if node.kind == STRING:
        at[0] = p
        return read_text(at, end)
    if node.kind == LONG or node.kind == INT:
        p = read_number(p, end, &number)
        if p == NULL or (node.kind == INT and number > INT_MAX):
            return None
        at[0] = p
        return PyLong_FromLongLong(<int64_t> (number >> 1) ^ -<int64_t> (number & 1))
    if node.kind == ENUM:
        if p[0] & 129 or p[0] >> 1 >= node.count:
            return None
        at[0] = p + 1
        return (<list> layout.symbols[node_at])[p[0] >> 1]
    if node.kind == BOOLEAN:
        if p[0] > 1:
            return None
        at[0] = p + 1
        return p[0] == 1
    if node.kind == BYTES:
        p = read_size(p, end, &size)
        if p == NULL:
            return None
        at[0] = p + size
        return PyBytes_FromStringAndSize(<char*> p, size)
    if node.kind == DOUBLE:
        if end - p < 8:
            return None
        memcpy(&real, p, 8)  # little endian, as on every machine that we build for
        at[0] = p + 8
        return real
    at[0] = p
    if node.kind == RECORD:
        return read_record(layout, node_at, at, end)
    return read_map(layout, node.inner, at, end) if node.kind == MAP else read_array(
        layout, node.inner, at, end
    )


cdef object read_record(Layout layout, int node_at, Place* at, Place end):
    cdef Node* node = &layout.nodes[node_at]
    cdef int field
    record = PyDict_Copy(layout.empty[node_at])
    for field in range(node.inner, node.inner + node.count):
        value = read_value(layout, field, at, end)
        if at[0] == NULL:
            return None
        if value is not None:
            PyDict_SetItem(record, layout.names[field], value)
    return record


cdef object read_array(Layout layout, int inner, Place* at, Place end):
    cdef Py_ssize_t size
    cdef list items = []
    while True:
        at[0] = read_count(at[0], end, &size)
        if at[0] == NULL or size == 0:
            return items
        for size in range(size, 0, -1):
            item = read_value(layout, inner, at, end)
            if at[0] == NULL:
                return None
            PyList_Append(items, item)


cdef object read_map(Layout layout, int inner, Place* at, Place end):
    cdef Py_ssize_t size
    cdef dict items = {}
    while True:
        at[0] = read_count(at[0], end, &size)
        if at[0] == NULL or size == 0:
            return items
        for size in range(size, 0, -1):
            key = read_text(at, end)
            if at[0] == NULL:
                return None
            value = read_value(layout, inner, at, end)
            if at[0] == NULL:
                return None
            PyDict_SetItem(items, key, value)


#: Values of runs by their bytes, by what the runs are: readers of several types share an envelope.
cdef dict _RUNS = {}


cdef class Reader:
    """bytes, position of the record's first byte -> the wanted fields, or None: see the module.

    As in `compiled`, some fields only (`wanted` not None) may come as the same objects that another
    record has: those of a run of fields that was met before.
    """

    def __init__(self, schema, wanted):
        self.layout = Layout(schema)
        fields, numbers = schema["fields"], []
        names = [field["name"] for field in fields]
        repeating = {} if wanted is None else REPEATING
        self.empty = dict.fromkeys(name for name in names if wanted is None or name in wanted)
        at = 0
        while at < len(names):
            until = repeating.get(names[at])
            last = names.index(until) if until in names[at:] else at
            numbers.append((at, last))
            at = last + 1
        self.count = len(numbers)
        self.steps = <Step*> PyMem_Malloc(self.count * sizeof(Step))
        if self.steps == NULL:
            raise MemoryError
        self.last_run, self.last_values = [None] * self.count, [()] * self.count
        self.kept = [None] * self.count
        root = self.layout.nodes[self.layout.root].inner
        for number, (at, last) in enumerate(numbers):
            task = RUN if last > at else TAKE if names[at] in self.empty else PASS
            self.steps[number] = Step(task, root + at, root + last)
            taken = tuple(name for name in names[at : last + 1] if name in self.empty)
            self.kept[number] = _RUNS.setdefault((repr(fields[at : last + 1]), taken), {})

    def __dealloc__(self):
        PyMem_Free(self.steps)

    def __call__(self, bytes buf not None, Py_ssize_t start):
        return self.read(buf, start)

    cdef dict read(self, bytes buf, Py_ssize_t start):
        cdef Place base = <Place> PyBytes_AS_STRING(buf)
        cdef Place end = base + PyBytes_GET_SIZE(buf)
        cdef Place p = base + start
        cdef Step* step
        cdef int number
        cdef dict record = PyDict_Copy(self.empty)
        for number in range(self.count):
            step = &self.steps[number]
            if step.task == PASS:
                p = skip(self.layout, step.first, p, end)
            elif step.task == TAKE:
                value = read_value(self.layout, step.first, &p, end)
                if p != NULL and value is not None:
                    PyDict_SetItem(record, self.layout.names[step.first], value)
            else:
                p = self._run(number, record, p, end)
            if p == NULL:
                return None
        return record if p == end else None

    cdef Place _run(self, int number, dict record, Place p, Place end) except? NULL:
        cdef object run = self.last_run[number]
        cdef tuple values
        cdef Py_ssize_t one
        if run is None or not begins(p, end, run):
            run = self._met(number, p, end)
            if run is None:
                return NULL
        values = self.last_values[number]
        for one in range(0, len(values), 2):
            PyDict_SetItem(record, values[one], values[one + 1])
        return p + PyBytes_GET_SIZE(run)

    cdef object _met(self, int number, Place begin, Place end):
        """The run that begins here, which is now the last one; None: see the module."""
        cdef Step* step = &self.steps[number]
        cdef Place p = begin
        cdef dict kept = self.kept[number]
        cdef int field
        for field in range(step.first, step.last + 1):
            p = skip(self.layout, field, p, end)
            if p == NULL:
                return None
        run = PyBytes_FromStringAndSize(<char*> begin, p - begin)
        values = kept.get(run)
        if values is None:
            values = self._values(step, begin, end)
            if len(kept) >= RUNS_MAX:
                kept.clear()
            kept[run] = values
        self.last_run[number], self.last_values[number] = run, values
        return run

    cdef tuple _values(self, Step* step, Place p, Place end):
        cdef int field
        cdef list found = []
        for field in range(step.first, step.last + 1):
            value = read_value(self.layout, field, &p, end)
            name = self.layout.names[field]
            if value is not None and name in self.empty:
                found += (name, value)
        return tuple(found)


cdef inline bint begins(Place p, Place end, object run) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(run)
    return end - p >= size and memcmp(p, PyBytes_AS_STRING(run), size) == 0
