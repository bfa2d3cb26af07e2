from libc.stdint cimport int64_t, uint64_t

ctypedef const unsigned char* Place

cdef enum Kind:
    LONG, INT, BOOLEAN, DOUBLE, STRING, BYTES, ENUM, NULLABLE, ARRAY, MAP, RECORD

cdef struct Node:
    Kind kind
    #: Index of the inner node; of a record's first field, which its others follow.
    int inner
    #: Fields of a record, symbols of an enum.
    int count

cdef class Layout:
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

    cdef int _reserve(self, int count) except -1
    cdef int _lay(self, int at, schema, dict types) except -1
    cdef int _lay_inner(self, schema, dict types) except -1
