# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""A schema as an array of nodes, for `reading` and `writing`."""

from cpython.mem cimport PyMem_Free, PyMem_Realloc

from trailweave.schemas.compiled import definition, named_types

cdef dict _PRIMITIVES = {
    "long": LONG, "int": INT, "boolean": BOOLEAN, "double": DOUBLE, "string": STRING, "bytes": BYTES
}

#: Symbols of an enum whose number is one byte.
cdef int SYMBOLS_MAX = 64
cdef object _MISSING = object()


cdef class Layout:
    """A schema as nodes; lists hold the Python objects that belong to a node, by its index."""

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
