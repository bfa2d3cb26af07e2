# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Readers and writers of one Avro schema in C: what `compiled` and `compiled_write` do, faster.

Only in wheels that were built with a C compiler; `codec` goes without where it is missing. Both
walk a schema that was laid out once as an array of nodes. They know the usual encodings alone, and
answer None for all else (a negative block count, an enum in two bytes, a value of another type,
bytes that are no record): the caller then asks the compiled Python, which decides, and says what is
wrong.
So every answer given here is one that Python gives too; the tests hold the two together.
"""

from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.dict cimport (
    PyDict_CheckExact, PyDict_Copy, PyDict_GetItem, PyDict_Next, PyDict_SetItem, PyDict_Size
)
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_Append, PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from trailweave.schemas.compiled import REPEATING, definition, named_types
from trailweave.schemas.compiled_write import Items

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    object PyLong_FromLongLong(long long number)

ctypedef const unsigned char* Place

cdef enum Kind:
    LONG, INT, BOOLEAN, DOUBLE, STRING, BYTES, ENUM, NULLABLE, ARRAY, MAP, RECORD

cdef dict _PRIMITIVES = {
    "long": LONG, "int": INT, "boolean": BOOLEAN, "double": DOUBLE, "string": STRING, "bytes": BYTES
}

#: Repeated runs that are kept, of one kind: what a fleet repeats; above it, all start anew.
cdef int RUNS_MAX = 4096
cdef uint64_t HIGH_BITS = 0x8080808080808080
cdef uint64_t INT_MAX = 0xFFFFFFFF
#: Symbols of an enum whose number is one byte.
cdef int SYMBOLS_MAX = 64
cdef object _MISSING = object()


cdef struct Node:
    Kind kind
    #: Index of the inner node; of a record's first field, which its others follow.
    int inner
    #: Fields of a record, symbols of an enum.
    int count


cdef class Layout:
    """A schema as nodes; lists hold the Python objects that belong to a node, by its index."""

    cdef Node* nodes
    cdef int size
    cdef int root
    #: Of a field: its name, and its default or `_MISSING`.
    cdef list names
    cdef list defaults
    #: Of an enum: its symbols, and their numbers by symbol.
    cdef list symbols
    cdef list numbers
    #: Of a record: its fields without values.
    cdef list empty

    def __init__(self, schema):
        self.names, self.defaults, self.symbols, self.numbers, self.empty = [], [], [], [], []
        self.root = self._reserve(1)
        self._lay(self.root, schema, named_types(schema))

    def __dealloc__(self):
        PyMem_Free(self.nodes)

    cdef int _reserve(self, int count) except -1:
        cdef int first = self.size
        cdef Node* grown = <Node*> PyMem_Realloc(self.nodes, (first + count) * sizeof(Node))
        if grown == NULL:
            raise MemoryError
        self.nodes, self.size = grown, first + count
        self.defaults += [_MISSING] * count
        for objects in (self.names, self.symbols, self.numbers, self.empty):
            objects += [None] * count
        return first

    cdef int _lay(self, int at, schema, dict types) except -1:
        cdef Node node
        node.inner = node.count = 0
        schema = definition(schema, types)
        if isinstance(schema, list):
            if len(schema) != 2 or schema[0] != "null":
                raise TypeError("unions are null first, then one type")
            node.kind = NULLABLE
            node.inner = self._lay_inner(schema[1], types)
        elif not isinstance(schema, dict):
            node.kind = <Kind> <int> _PRIMITIVES[schema]
        elif schema["type"] == "record":
            node.kind = RECORD
            node.count = len(schema["fields"])
            node.inner = self._reserve(node.count)
            self.empty[at] = {field["name"]: None for field in schema["fields"]}
            for number, field in enumerate(schema["fields"]):
                self.names[node.inner + number] = field["name"]
                self.defaults[node.inner + number] = field.get("default", _MISSING)
                self._lay(node.inner + number, field["type"], types)
        elif schema["type"] == "enum":
            node.kind = ENUM
            node.count = len(schema["symbols"])
            if node.count > SYMBOLS_MAX:
                raise TypeError("an enum has more symbols than one byte can say")
            self.symbols[at] = list(schema["symbols"])
            self.numbers[at] = {symbol: n for n, symbol in enumerate(schema["symbols"])}
        else:
            node.kind = MAP if schema["type"] == "map" else ARRAY
            node.inner = self._lay_inner(schema["values" if node.kind == MAP else "items"], types)
        self.nodes[at] = node
        return 0

    cdef int _lay_inner(self, schema, dict types) except -1:
        cdef int at = self._reserve(1)
        self._lay(at, schema, types)
        return at


# --- reading: NULL for a place means that Python must say what is there --------------------------


cdef inline Place read_number(Place p, Place end, uint64_t* number) noexcept:
    """A number as it stands, zigzag."""
    cdef uint64_t found = 0
    cdef int shift = 0
    while p < end and shift < 64:
        found |= <uint64_t> (p[0] & 127) << shift
        if p[0] < 128:
            if shift == 63 and p[0] > 1:
                return NULL
            number[0] = found
            return p + 1
        p += 1
        shift += 7
    return NULL


cdef inline Place read_size(Place p, Place end, Py_ssize_t* size) noexcept:
    """A length, of which so many bytes are there."""
    cdef uint64_t number
    p = read_number(p, end, &number)
    if p == NULL or number & 1 or number >> 1 > <uint64_t> (end - p):
        return NULL
    size[0] = <Py_ssize_t> (number >> 1)
    return p


cdef inline Place read_count(Place p, Place end, Py_ssize_t* count) noexcept:
    """The items of the block that begins here; 0 at the end, which is one byte."""
    if p < end and p[0] == 0:
        count[0] = 0
        return p + 1
    # Every item takes a byte at least: with more items than bytes, some are not there.
    p = read_size(p, end, count)
    return p if p != NULL and count[0] else NULL


cdef inline bint is_ascii(Place p, Py_ssize_t size) noexcept:
    cdef uint64_t eight, found = 0
    while size >= 8:
        memcpy(&eight, p, 8)
        found |= eight
        p += 8
        size -= 8
    while size:
        found |= p[0]
        p += 1
        size -= 1
    return not found & HIGH_BITS


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


cdef enum Task:
    PASS, TAKE, RUN

cdef struct Step:
    Task task
    #: The field's node; the first and the last of a run.
    int first
    int last


#: Values of runs by their bytes, by what the runs are: readers of several types share an envelope.
cdef dict _RUNS = {}


cdef class Reader:
    """bytes, position of the record's first byte -> the wanted fields, or None: see the module.

    As in `compiled`, some fields only (`wanted` not None) may come as the same objects that another
    record has: those of a run of fields that was met before.
    """

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


# --- writing -------------------------------------------------------------------------------------


cdef class Writer:
    """record, bytes to put in front -> prefix + the record's encoding, or None: see the module."""

    cdef Layout layout
    cdef unsigned char* out
    cdef Py_ssize_t size
    cdef Py_ssize_t room

    def __init__(self, schema):
        self.layout = Layout(schema)

    def __dealloc__(self):
        PyMem_Free(self.out)

    def __call__(self, record, bytes prefix not None):
        self.size = 0
        self._put(PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix))
        if not self._write(self.layout.root, record):
            return None
        return PyBytes_FromStringAndSize(<char*> self.out, self.size)

    cdef int _grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room = 2 * (self.size + more) + 1024
        cdef unsigned char* grown = <unsigned char*> PyMem_Realloc(self.out, room)
        if grown == NULL:
            raise MemoryError
        self.out, self.room = grown, room
        return 0

    cdef inline int _put(self, const char* data, Py_ssize_t size) except -1:
        if self.size + size > self.room:
            self._grow(size)
        memcpy(self.out + self.size, data, size)
        self.size += size
        return 0

    cdef inline int _put_number(self, int64_t number) except -1:
        cdef uint64_t left = (<uint64_t> number << 1) ^ <uint64_t> (number >> 63)
        if self.size + 10 > self.room:
            self._grow(10)
        while left > 127:
            self.out[self.size] = <unsigned char> (left & 127 | 128)
            self.size += 1
            left >>= 7
        self.out[self.size] = <unsigned char> left
        self.size += 1
        return 0

    cdef bint _write(self, int at, value) except -1:
        """Whether the value is of the node's type."""
        cdef Node* node = &self.layout.nodes[at]
        cdef PyObject* number
        cdef double real
        if node.kind == NULLABLE:
            if value is None:
                self._put_number(0)
                return True
            self._put_number(1)
            return self._write(node.inner, value)
        if node.kind == STRING:
            return PyUnicode_CheckExact(value) and self._write_text(value)
        if node.kind == LONG or node.kind == INT:
            return PyLong_CheckExact(value) and self._write_number(value, node.kind == INT)
        if node.kind == ENUM:
            if not PyUnicode_CheckExact(value):
                return False
            number = PyDict_GetItem(self.layout.numbers[at], value)
            if number == NULL:
                return False
            self._put_number(<object> number)
            return True
        if node.kind == BOOLEAN:
            if value is not True and value is not False:
                return False
            self._put(b"\1" if value is True else b"\0", 1)
            return True
        if node.kind == BYTES:
            if not PyBytes_CheckExact(value):
                return False
            self._put_number(PyBytes_GET_SIZE(value))
            self._put(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
            return True
        if node.kind == DOUBLE:
            if not PyFloat_CheckExact(value):
                return False
            real = PyFloat_AS_DOUBLE(value)
            self._put(<char*> &real, 8)
            return True
        if node.kind == RECORD:
            return PyDict_CheckExact(value) and self._write_record(node, value)
        if node.kind == MAP:
            return PyDict_CheckExact(value) and self._write_map(node.inner, value)
        return self._write_array(node.inner, value)

    cdef bint _write_text(self, value) except -1:
        cdef Py_ssize_t size
        cdef const char* data
        try:
            data = PyUnicode_AsUTF8AndSize(value, &size)
        except UnicodeEncodeError:
            return False
        self._put_number(size)
        self._put(data, size)
        return True

    cdef bint _write_number(self, value, bint short) except -1:
        cdef int overflow = 0
        cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow or (short and not -0x80000000 <= number <= 0x7FFFFFFF):
            return False
        self._put_number(number)
        return True

    cdef bint _write_record(self, Node* node, dict record) except -1:
        cdef int field
        cdef PyObject* found
        for field in range(node.inner, node.inner + node.count):
            found = PyDict_GetItem(record, self.layout.names[field])
            value = <object> found if found != NULL else self.layout.defaults[field]
            if not self._write(field, value):
                return False
        return True

    cdef bint _write_map(self, int inner, dict items) except -1:
        cdef Py_ssize_t place = 0
        cdef PyObject* key
        cdef PyObject* item
        if PyDict_Size(items):
            self._put_number(PyDict_Size(items))
            while PyDict_Next(items, &place, &key, &item):
                if not PyUnicode_CheckExact(<object> key) or not self._write_text(<object> key):
                    return False
                if not self._write(inner, <object> item):
                    return False
        self._put_number(0)
        return True

    cdef bint _write_array(self, int inner, items) except -1:
        if type(items) is Items:
            self._put(PyBytes_AS_STRING(items), PyBytes_GET_SIZE(items))
        elif PyList_CheckExact(items) or PyTuple_CheckExact(items):
            if len(items):
                self._put_number(len(items))
                for item in items:
                    if not self._write(inner, item):
                        return False
        else:
            return False
        self._put_number(0)
        return True
