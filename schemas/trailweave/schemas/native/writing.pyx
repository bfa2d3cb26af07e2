# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A writer of one Avro schema: what `compiled_write` does, faster; see the package."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem, PyDict_Next, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_Free
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t, uint64_t

from trailweave.schemas.native.buffer cimport Buffer, as_bytes, put, put_number
from trailweave.schemas.native.layout cimport (
    BOOLEAN, BYTES, DOUBLE, ENUM, INT, LONG, MAP, NULLABLE, RECORD, STRING, Layout, Node
)

from trailweave.schemas.compiled_write import Items

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1


cdef class Writer:
    """record, bytes to put in front -> prefix + the record's encoding, or None: see the module."""

    cdef Layout layout
    cdef Buffer out

    def __init__(self, schema):
        self.layout = Layout(schema)

    def __dealloc__(self):
        PyMem_Free(self.out.at)

    def __call__(self, record, bytes prefix not None):
        self.out.size = 0
        put(&self.out, PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix))
        if not self._write(self.layout.root, record):
            return None
        return as_bytes(&self.out)

    cdef inline int _put_number(self, int64_t number) except -1:
        return put_number(&self.out, (<uint64_t> number << 1) ^ <uint64_t> (number >> 63))

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
            put(&self.out, b"\1" if value is True else b"\0", 1)
            return True
        if node.kind == BYTES:
            if not PyBytes_CheckExact(value):
                return False
            self._put_number(PyBytes_GET_SIZE(value))
            put(&self.out, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
            return True
        if node.kind == DOUBLE:
            if not PyFloat_CheckExact(value):
                return False
            real = PyFloat_AS_DOUBLE(value)
            put(&self.out, <char*> &real, 8)
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
        put(&self.out, data, size)
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
            put(&self.out, PyBytes_AS_STRING(items), PyBytes_GET_SIZE(items))
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
