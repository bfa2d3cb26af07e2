# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Events as columns of ClickHouse's Native format: what its Avro reader makes of them, faster.

Only in wheels that were built with a C compiler. Takes events in the usual encoding of this version,
checked as `validity.valid_type` does on the way, and refuses any other: Python then says whether it
is an event, and if it is, all rows go as Avro. So the rows are the same, whichever way they go.
"""

import os

from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from trailweave.schemas.native.buffer cimport Buffer, as_bytes, put, put_number
from trailweave.schemas.native.layout cimport (
    ARRAY, BOOLEAN, BYTES, DOUBLE, ENUM, INT, LONG, NULLABLE, RECORD, STRING, Kind, Layout, Node,
    Place
)
from trailweave.schemas.native.reading cimport skip, skip_text
from trailweave.schemas.native.values cimport (
    VARINT_BYTES_MAX, is_trace_id, put_varint, read_count, read_number, read_size
)

from trailweave.schemas.codec import TENANT_BYTES_MAX

# As `codec.head` has them, behind the framing: sizes and texts of event id and trace id, then the
# size of the tenant.
cdef int TRACE_ID_AT = 38
cdef int TRACE_ID_BYTES = 32
cdef int TENANT_AT = 70
cdef int _TENANT_BYTES_MAX = TENANT_BYTES_MAX
cdef uint64_t INT_MAX = 0xFFFFFFFF

#: What a node has for a column.
cdef enum:
    NOTHING = -1
    #: A field of it has one.
    WITHIN = -2

#: Of a LowCardinality column in the Native format: its version; that its dictionary comes with it.
cdef uint64_t DICTIONARY_VERSION = 1
cdef uint64_t DICTIONARY_FOLLOWS = 0x600

#: Who sends terms doesn't know how they are hashed, and can't make them collide.
cdef uint64_t _SECRET = int.from_bytes(os.urandom(8), "little") | 1


cdef enum Form:
    TEXT, TERM, NUMBER, MAYBE_NUMBER, REAL, FLAG, TERMS

cdef dict _FORMS = {
    "String": TEXT,
    "LowCardinality(String)": TERM,
    "Int64": NUMBER,
    "DateTime64": NUMBER,
    "Nullable(Int64)": MAYBE_NUMBER,
    "Nullable(DateTime64)": MAYBE_NUMBER,
    "Float64": REAL,
    "Bool": FLAG,
    "Array(LowCardinality(String))": TERMS,
}

cdef dict _KINDS = {
    TEXT: (STRING, ENUM, BYTES),
    TERM: (STRING, ENUM),
    NUMBER: (LONG, INT),
    MAYBE_NUMBER: (LONG, INT),
    REAL: (DOUBLE,),
    FLAG: (BOOLEAN,),
    TERMS: (ARRAY,),
}


cdef inline int put_byte(Buffer* buffer, unsigned char byte) except -1:
    return put(buffer, &byte, 1)


cdef inline int put_text(Buffer* buffer, const void* data, size_t size) except -1:
    put_number(buffer, size)
    return put(buffer, data, size)


# --- terms: the different texts of a column, numbered from '' ------------------------------------


cdef struct Slot:
    uint64_t hash
    #: Of the term, from 1 on; 0: there is none.
    uint32_t number

cdef struct Term:
    size_t at
    size_t size

cdef struct Terms:
    #: As they are sent.
    Buffer texts
    #: Where each is in there.
    Buffer places
    uint32_t count
    Slot* slots
    size_t room
    uint32_t last


cdef int begin_terms(Terms* terms) except -1:
    terms.room = 16
    terms.slots = <Slot*> PyMem_Calloc(terms.room, sizeof(Slot))
    if terms.slots == NULL:
        raise MemoryError
    add_term(terms, NULL, 0)
    return 0


cdef int add_term(Terms* terms, Place p, size_t size) except -1:
    cdef Term term
    put_text(&terms.texts, p, size)
    term.at, term.size = terms.texts.size - size, size
    put(&terms.places, &term, sizeof(Term))
    terms.count += 1
    return 0


cdef inline bint is_term(Terms* terms, uint32_t number, Place p, size_t size) noexcept:
    cdef Term* term = <Term*> terms.places.at + number
    return term.size == size and memcmp(terms.texts.at + term.at, p, size) == 0


cdef inline uint64_t hashed(Place p, size_t size) noexcept:
    cdef uint64_t eight, found = size * _SECRET
    while size >= 8:
        memcpy(&eight, p, 8)
        found = (found ^ eight) * _SECRET
        found ^= found >> 32
        p += 8
        size -= 8
    eight = 0
    memcpy(&eight, p, size)
    found = (found ^ eight) * _SECRET
    return found ^ found >> 32


cdef int number_of(Terms* terms, Place p, size_t size, uint32_t* number) except -1:
    cdef uint64_t hash
    cdef size_t at
    if size == 0:
        number[0] = 0
        return 0
    if is_term(terms, terms.last, p, size):
        number[0] = terms.last
        return 0
    hash = hashed(p, size)
    at = hash & (terms.room - 1)
    while terms.slots[at].number:
        if terms.slots[at].hash == hash and is_term(terms, terms.slots[at].number - 1, p, size):
            break
        at = (at + 1) & (terms.room - 1)
    else:
        add_term(terms, p, size)
        terms.slots[at].hash, terms.slots[at].number = hash, terms.count
    number[0] = terms.last = terms.slots[at].number - 1
    if 2 * terms.count > terms.room:
        spread(terms)
    return 0


cdef int spread(Terms* terms) except -1:
    """Twice the slots."""
    cdef size_t old, at, room = 2 * terms.room
    cdef Slot* slots = <Slot*> PyMem_Calloc(room, sizeof(Slot))
    if slots == NULL:
        raise MemoryError
    for old in range(terms.room):
        if terms.slots[old].number:
            at = terms.slots[old].hash & (room - 1)
            while slots[at].number:
                at = (at + 1) & (room - 1)
            slots[at] = terms.slots[old]
    PyMem_Free(terms.slots)
    terms.slots, terms.room = slots, room
    return 0


# --- columns -------------------------------------------------------------------------------------


cdef struct Column:
    Form form
    #: Rows that have a value here.
    Py_ssize_t rows
    #: Values; of terms their numbers, of 32 bits each.
    Buffer values
    #: Its size before the last row.
    size_t before
    #: Of what may be null, a byte a row; of arrays, their ends, of 64 bits each.
    Buffer marks
    Terms terms


cdef class Plan:
    """What is where in the events of this version, and which column it goes to. Built once."""

    cdef readonly list columns
    cdef list forms
    #: By type: its layout, a column for every node of it, and the texts of its enums by node.
    cdef list layouts
    cdef int** targets
    cdef list symbols
    #: By type: the node that says the type, and what it has to say.
    cdef int* kind_node
    cdef int* kind
    cdef int count
    cdef dict numbers

    def __init__(self, types, columns):
        """`types`: name -> (schema, {path: column}); `columns`: (name, type) of each.

        The first three columns are the topic, the offset and the broker's time, the last one is
        the record.
        Raises `TypeError` for a field of a type that does not go into its column.
        """
        cdef int number
        self.columns = list(columns)
        self.forms = [_FORMS[_without_arguments(kind)] for _, kind in columns]
        self.layouts, self.symbols, self.numbers = [], [], {}
        self.targets = <int**> PyMem_Calloc(len(types), sizeof(int*))
        self.kind_node = <int*> PyMem_Calloc(len(types), sizeof(int))
        self.kind = <int*> PyMem_Calloc(len(types), sizeof(int))
        if self.targets == NULL or self.kind_node == NULL or self.kind == NULL:
            raise MemoryError
        named = {name: number for number, (name, _) in enumerate(columns)}
        for number, (name, (schema, paths)) in enumerate(types.items()):
            self.count = number + 1
            self.numbers[name] = number
            wanted = {path: named[column] for path, column in paths.items()}
            self._lay(number, name, Layout(schema), wanted)

    def __dealloc__(self):
        cdef int number
        if self.targets != NULL:
            for number in range(self.count):
                PyMem_Free(self.targets[number])
        PyMem_Free(self.targets)
        PyMem_Free(self.kind_node)
        PyMem_Free(self.kind)

    cdef _lay(self, int number, name, Layout layout, dict wanted):
        cdef int at
        cdef int* targets = <int*> PyMem_Malloc(layout.size * sizeof(int))
        if targets == NULL:
            raise MemoryError
        self.targets[number] = targets
        for at in range(layout.size):
            targets[at] = NOTHING
        self.layouts.append(layout)
        self.symbols.append([
            None if symbols is None else [symbol.encode() for symbol in symbols]
            for symbols in layout.symbols
        ])
        if set(wanted) != self._aim(layout, targets, layout.root, (), wanted):
            raise TypeError(f"{name} has fields missing of those that go into columns")
        for at in range(layout.size):
            if layout.names[at] == "event_type" and layout.symbols[at] is not None:
                self.kind_node[number], self.kind[number] = at, layout.numbers[at][name]

    cdef set _aim(self, Layout layout, int* targets, int at, tuple path, dict wanted):
        """Set the targets below a node; which of the paths were there."""
        cdef int field
        cdef Node* node = &layout.nodes[at]
        cdef set found = set()
        if node.kind == RECORD:
            for field in range(node.inner, node.inner + node.count):
                found |= self._aim(layout, targets, field, (*path, layout.names[field]), wanted)
        elif node.kind == NULLABLE:
            found |= self._aim(layout, targets, node.inner, path, wanted)
        elif path in wanted:
            self._check(layout, at, path, wanted[path])
            targets[at] = wanted[path]
            return {path}
        if found:
            targets[at] = WITHIN
        return found

    cdef _check(self, Layout layout, int at, tuple path, int column):
        cdef Node* node = &layout.nodes[at]
        form = self.forms[column]
        fits = node.kind in _KINDS[form]
        if fits and form == TERMS:
            fits = layout.nodes[node.inner].kind in _KINDS[TERM]
        if not fits:
            raise TypeError(f"the field {'.'.join(path)} does not go into {self.columns[column]}")


def _without_arguments(kind):
    """DateTime64 is its number, whatever its unit and zone."""
    before, time, behind = kind.partition("DateTime64(")
    return f"{before}DateTime64{behind.partition(')')[2]}" if time else kind


cdef class Columns:
    """Rows of one partition's events, each in all columns."""

    cdef readonly Py_ssize_t rows
    cdef Plan plan
    cdef bytes topic
    cdef Column* columns
    cdef int count
    #: The framings of what is taken: (bytes, type).
    cdef list frames
    cdef list symbols
    cdef int* targets
    cdef int kind_node
    cdef int kind

    def __init__(self, Plan plan not None, str topic not None, list frames not None):
        """`frames`: the bytes in front of an event of the topic, and the name of its type."""
        cdef int number
        self.plan, self.topic, self.count = plan, topic.encode(), len(plan.columns)
        self.frames = [(frame, plan.numbers[name]) for frame, name in frames]
        self.columns = <Column*> PyMem_Calloc(self.count, sizeof(Column))
        if self.columns == NULL:
            raise MemoryError
        for number in range(self.count):
            self.columns[number].form = <Form> <int> plan.forms[number]
            if self.columns[number].form == TERM or self.columns[number].form == TERMS:
                begin_terms(&self.columns[number].terms)

    def __dealloc__(self):
        cdef int number
        cdef Column* column
        if self.columns == NULL:
            return
        for number in range(self.count):
            column = &self.columns[number]
            PyMem_Free(column.values.at)
            PyMem_Free(column.marks.at)
            PyMem_Free(column.terms.texts.at)
            PyMem_Free(column.terms.places.at)
            PyMem_Free(column.terms.slots)
        PyMem_Free(self.columns)

    def take(self, list records not None, Py_ssize_t at, int64_t from_ms, int64_t until_ms):
        """Rows of the records from the one at `at` on; which is the first that was not taken.

        A record is (offset, broker's time in ms, key, value, ...). One of a time outside of the
        limits is not taken, nor one that is left to Python.
        """
        cdef int64_t recorded_ms
        while at < len(records):
            record = <tuple> records[at]
            recorded_ms = record[1]
            if not from_ms <= recorded_ms < until_ms:
                break
            if not self._take(record[0], recorded_ms, record[2], record[3]):
                break
            at += 1
        return at

    cdef bint _take(self, int64_t offset, int64_t recorded_ms, key, value) except -1:
        cdef Place base, p, end
        cdef Py_ssize_t size, framing
        cdef int number
        cdef Layout layout
        if not PyBytes_CheckExact(key) or not PyBytes_CheckExact(value):
            return False
        base, size = <Place> PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value)
        for frame, number in self.frames:
            framing = PyBytes_GET_SIZE(frame)
            if size >= framing and memcmp(base, PyBytes_AS_STRING(frame), framing) == 0:
                break
        else:
            return False
        p, end = base + framing, base + size
        if not is_head(p, end, key):
            return False
        layout, self.symbols = self.plan.layouts[number], self.plan.symbols[number]
        self.targets = self.plan.targets[number]
        self.kind_node, self.kind = self.plan.kind_node[number], self.plan.kind[number]
        if self._put(layout, layout.root, p, end) != end:
            self._take_back()
            return False
        self._put_text(
            &self.columns[0],
            <Place> PyBytes_AS_STRING(self.topic),
            PyBytes_GET_SIZE(self.topic),
        )
        self._put_number(&self.columns[1], offset)
        self._put_number(&self.columns[2], recorded_ms)
        put_text(&self.columns[self.count - 1].values, base, size)
        self.columns[self.count - 1].rows += 1
        self._fill()
        self.rows += 1
        return True

    cdef Place _put(self, Layout layout, int at, Place p, Place end) except? NULL:
        """One value into its columns, or past it; NULL: see the module."""
        cdef Node* node = &layout.nodes[at]
        cdef Column* column
        cdef uint64_t number
        cdef Py_ssize_t size
        cdef int field
        cdef double real
        cdef int target = self.targets[at]
        if target == NOTHING:
            return skip(layout, at, p, end)
        if p >= end:
            return NULL
        if node.kind == NULLABLE:
            if p[0] == 2:
                return self._put(layout, node.inner, p + 1, end)
            return p + 1 if p[0] == 0 else NULL
        if node.kind == RECORD:
            for field in range(node.inner, node.inner + node.count):
                p = self._put(layout, field, p, end)
                if p == NULL:
                    return NULL
            return p
        column = &self.columns[target]
        if column.rows != self.rows:
            return NULL
        column.before = column.values.size
        if node.kind == STRING:
            return self._put_string(column, p, end)
        if node.kind == ENUM:
            if p[0] & 129 or p[0] >> 1 >= node.count or (
                at == self.kind_node and p[0] >> 1 != self.kind
            ):
                return NULL
            symbol = (<list> self.symbols[at])[p[0] >> 1]
            self._put_text(column, <Place> PyBytes_AS_STRING(symbol), PyBytes_GET_SIZE(symbol))
            return p + 1
        if node.kind == LONG or node.kind == INT:
            p = read_number(p, end, &number)
            if p == NULL or (node.kind == INT and number > INT_MAX):
                return NULL
            self._put_number(column, <int64_t> (number >> 1) ^ -<int64_t> (number & 1))
            return p
        if node.kind == ARRAY:
            return self._put_array(layout, node.inner, column, p, end)
        if node.kind == BOOLEAN:
            if p[0] > 1:
                return NULL
            put_byte(&column.values, p[0])
            column.rows += 1
            return p + 1
        if node.kind == BYTES:
            p = read_size(p, end, &size)
            if p == NULL:
                return NULL
            self._put_text(column, p, size)
            return p + size
        if end - p < 8:
            return NULL
        put(&column.values, p, 8)  # little endian, as on every machine that we build for
        column.rows += 1
        return p + 8

    cdef Place _put_string(self, Column* column, Place p, Place end) except? NULL:
        cdef Py_ssize_t size = 0
        cdef Place behind = skip_text(p, end)
        if behind == NULL:
            return NULL
        p = read_size(p, end, &size)
        self._put_text(column, p, size)
        return behind

    cdef int _put_text(self, Column* column, Place p, Py_ssize_t size) except -1:
        cdef uint32_t number
        if column.form == TEXT:
            put_text(&column.values, p, size)
        else:
            number_of(&column.terms, p, size, &number)
            put(&column.values, &number, sizeof(number))
        column.rows += 1
        return 0

    cdef int _put_number(self, Column* column, int64_t number) except -1:
        put(&column.values, &number, sizeof(number))
        if column.form == MAYBE_NUMBER:
            put_byte(&column.marks, 0)
        column.rows += 1
        return 0

    cdef Place _put_array(
        self, Layout layout, int inner, Column* column, Place p, Place end
    ) except? NULL:
        cdef Py_ssize_t rows = column.rows, size
        cdef uint64_t ends
        while True:
            p = read_count(p, end, &size)
            if p == NULL or size == 0:
                break
            for size in range(size, 0, -1):
                if p >= end:
                    return NULL
                if layout.nodes[inner].kind == STRING:
                    p = self._put_string(column, p, end)
                elif p[0] & 129 or p[0] >> 1 >= layout.nodes[inner].count:
                    return NULL
                else:
                    symbol = (<list> self.symbols[inner])[p[0] >> 1]
                    self._put_text(
                        column, <Place> PyBytes_AS_STRING(symbol), PyBytes_GET_SIZE(symbol)
                    )
                    p += 1
                # Counted once it is whole.
                column.rows = rows
                if p == NULL:
                    return NULL
        if p != NULL:
            ends = column.values.size // sizeof(uint32_t)
            put(&column.marks, &ends, sizeof(ends))
            column.rows += 1
        return p

    cdef int _fill(self) except -1:
        """The default in every column that the row has nothing for: what ClickHouse puts there."""
        cdef int number
        cdef uint64_t nothing = 0
        cdef Column* column
        for number in range(self.count):
            column = &self.columns[number]
            if column.rows > self.rows:
                continue
            column.before = column.values.size
            column.rows += 1
            if column.form == TEXT or column.form == FLAG:
                put_byte(&column.values, 0)
            elif column.form == TERM:
                put(&column.values, &nothing, sizeof(uint32_t))
            elif column.form == TERMS:
                nothing = column.values.size // sizeof(uint32_t)
                put(&column.marks, &nothing, sizeof(nothing))
                nothing = 0
            else:
                put(&column.values, &nothing, sizeof(nothing))
                if column.form == MAYBE_NUMBER:
                    put_byte(&column.marks, 1)
        return 0

    cdef _take_back(self):
        """Forget what there is of a row that is not whole."""
        cdef int number
        cdef Column* column
        for number in range(self.count):
            column = &self.columns[number]
            if column.form == TERMS:
                # An array that broke off has left terms, and no end.
                if column.rows > self.rows:
                    column.marks.size -= sizeof(uint64_t)
                column.values.size = sizeof(uint32_t) * (
                    (<uint64_t*> column.marks.at)[self.rows - 1] if self.rows else 0
                )
            elif column.rows > self.rows:
                column.values.size = column.before
                if column.form == MAYBE_NUMBER:
                    column.marks.size -= 1
            column.rows = self.rows

    def block(self, shared):
        """The bytes of all rows as one block, in pieces.

        `shared`: (name, type, values as the format has them) of columns in front.
        """
        cdef int number
        cdef list found = [varint(self.count + len(shared)), varint(self.rows)]
        for name, kind, values in shared:
            found += [text(name), text(kind), values]
        for number, (name, kind) in enumerate(self.plan.columns):
            found += [text(name), text(kind), *self._values(&self.columns[number])]
        return found

    cdef list _values(self, Column* column):
        if column.form == TERM:
            return [fixed(DICTIONARY_VERSION), *terms_of(column)]
        if column.form == TERMS:
            ends = [fixed(DICTIONARY_VERSION), as_bytes(&column.marks)]
            return ends + terms_of(column) if column.values.size else ends
        if column.form == MAYBE_NUMBER:
            return [as_bytes(&column.marks), as_bytes(&column.values)]
        return [as_bytes(&column.values)]


cdef bint is_head(Place p, Place end, key) noexcept:
    """Whether the record begins as an event does, and the Kafka key is its trace id."""
    cdef Py_ssize_t at
    cdef unsigned char seen = 0
    if end - p <= TENANT_AT or PyBytes_GET_SIZE(key) != TRACE_ID_BYTES:
        return False
    if p[0] != 72 or p[37] != 64 or p[TENANT_AT] > 2 * _TENANT_BYTES_MAX:
        return False
    if memcmp(p + TRACE_ID_AT, PyBytes_AS_STRING(key), TRACE_ID_BYTES):
        return False
    for at in range(1, TRACE_ID_AT):
        seen |= p[at]
    return not seen & 128 and is_trace_id(p + TRACE_ID_AT, TRACE_ID_BYTES)


cdef list terms_of(Column* column):
    """The dictionary, then the terms' numbers in it, as narrow as they can be."""
    cdef Py_ssize_t at, count = column.values.size // sizeof(uint32_t)
    cdef uint32_t* numbers = <uint32_t*> column.values.at
    cdef int width = 0 if column.terms.count <= 1 << 8 else 1 if column.terms.count <= 1 << 16 else 2
    cdef bytes narrow = PyBytes_FromStringAndSize(NULL, count << width)
    cdef unsigned char* out = <unsigned char*> PyBytes_AS_STRING(narrow)
    for at in range(count):
        memcpy(out + (at << width), &numbers[at], 1 << width)  # little endian: the low bytes
    return [
        fixed(DICTIONARY_FOLLOWS | width),
        fixed(column.terms.count),
        as_bytes(&column.terms.texts),
        fixed(count),
        narrow,
    ]


cdef bytes fixed(uint64_t number):
    return PyBytes_FromStringAndSize(<char*> &number, sizeof(number))


cdef bytes varint(uint64_t number):
    cdef unsigned char out[VARINT_BYTES_MAX]
    return PyBytes_FromStringAndSize(<char*> out, put_varint(out, number) - out)


cdef bytes text(str value):
    """As the format has it: its size, and its bytes."""
    data = value.encode()
    return varint(len(data)) + data
