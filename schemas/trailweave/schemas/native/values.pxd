"""What Avro values are made of, for every module that walks over bytes."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from trailweave.schemas.native.layout cimport Place

cdef enum:
    VARINT_BYTES_MAX = 10

# NULL for a place means that Python must say what is there.


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
    return not found & <uint64_t> 0x8080808080808080


cdef inline unsigned char* put_varint(unsigned char* out, uint64_t left) noexcept:
    while left > 127:
        out[0] = <unsigned char> (left & 127 | 128)
        out += 1
        left >>= 7
    out[0] = <unsigned char> left
    return out + 1


cdef inline bint is_trace_id(Place p, Py_ssize_t size) noexcept:
    """32 lower-case hex digits."""
    cdef Py_ssize_t at
    for at in range(size):
        if not (c"0" <= p[at] <= c"9" or c"a" <= p[at] <= c"f"):
            return False
    return size == 32
