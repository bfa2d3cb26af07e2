"""Bytes that grow, for every module that writes them. Whoever has a buffer frees `at`."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Realloc
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from trailweave.schemas.native.values cimport VARINT_BYTES_MAX, put_varint

cdef struct Buffer:
    unsigned char* at
    size_t size
    size_t room


cdef inline int grow(Buffer* buffer, size_t more) except -1:
    cdef size_t room = 2 * (buffer.size + more) + 64
    cdef unsigned char* grown = <unsigned char*> PyMem_Realloc(buffer.at, room)
    if grown == NULL:
        raise MemoryError
    buffer.at, buffer.room = grown, room
    return 0


cdef inline int put(Buffer* buffer, const void* data, size_t size) except -1:
    if buffer.size + size > buffer.room:
        grow(buffer, size)
    memcpy(buffer.at + buffer.size, data, size)
    buffer.size += size
    return 0


cdef inline int put_number(Buffer* buffer, uint64_t number) except -1:
    """As a varint."""
    if buffer.size + VARINT_BYTES_MAX > buffer.room:
        grow(buffer, VARINT_BYTES_MAX)
    buffer.size = put_varint(buffer.at + buffer.size, number) - buffer.at
    return 0


cdef inline bytes as_bytes(Buffer* buffer):
    return PyBytes_FromStringAndSize(<char*> buffer.at, buffer.size)
