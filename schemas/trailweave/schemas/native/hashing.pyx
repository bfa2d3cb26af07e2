# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""SHA-256 without an object per hash: by the same OpenSSL that `hashlib` uses.

Making and freeing a `hashlib` object takes longer than hashing an event. `hashlib`'s own extension
has libcrypto loaded; its functions are looked up in there, and used if what they say of a probe is
what `hashlib` says. Where they are not to be found (a Python with OpenSSL linked in), `hashlib`
itself is asked.
"""

import hashlib

from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.string cimport memcmp, memcpy

cdef extern from "<dlfcn.h>":
    int RTLD_NOW
    void* dlopen(const char* path, int flags)
    void* dlsym(void* library, const char* name)

ctypedef void* (*NewContext)() noexcept
ctypedef const void* (*Method)() noexcept
ctypedef int (*Init)(void* context, const void* method, void* engine) noexcept
ctypedef int (*Update)(void* context, const void* data, size_t size) noexcept
ctypedef int (*Final)(void* context, unsigned char* digest, unsigned int* size) noexcept

cdef int DIGEST_BYTES = 32

#: One, used by whoever holds the interpreter's lock; NULL: `hashlib` is asked.
cdef void* _context = NULL
cdef Init _init
cdef Update _update
cdef Final _final


cdef int sha256(const unsigned char* data, Py_ssize_t size, unsigned char* digest) except -1:
    """Write the 32 bytes of SHA-256."""
    # Without a method: the one that the context has.
    if _context != NULL and _hashed(NULL, data, size, digest):
        return 0
    found = hashlib.sha256(PyBytes_FromStringAndSize(<const char*> data, size)).digest()
    memcpy(digest, PyBytes_AS_STRING(found), DIGEST_BYTES)
    return 0


cdef bint _hashed(
    const void* method, const unsigned char* data, Py_ssize_t size, unsigned char* digest
) noexcept:
    return (
        _init(_context, method, NULL) == 1
        and _update(_context, data, size) == 1
        and _final(_context, digest, NULL) == 1
    )


cdef _bind():
    global _context, _init, _update, _final
    cdef const unsigned char* probe = b"probe"
    cdef unsigned char digest[64]
    try:
        import _hashlib
        path = _hashlib.__file__.encode()
    except (ImportError, AttributeError):
        return
    cdef void* library = dlopen(path, RTLD_NOW)
    if library == NULL:
        return
    cdef NewContext new = <NewContext> dlsym(library, "EVP_MD_CTX_new")
    cdef Method method = <Method> dlsym(library, "EVP_sha256")
    _init = <Init> dlsym(library, "EVP_DigestInit_ex")
    _update = <Update> dlsym(library, "EVP_DigestUpdate")
    _final = <Final> dlsym(library, "EVP_DigestFinal_ex")
    if new == NULL or method == NULL or _init == NULL or _update == NULL or _final == NULL:
        return
    _context = new()
    if _context == NULL:
        return
    right = hashlib.sha256(b"probe").digest()
    if not (
        _hashed(method(), probe, 5, digest)
        and memcmp(digest, PyBytes_AS_STRING(right), DIGEST_BYTES) == 0
        and _hashed(NULL, probe, 5, digest)
        and memcmp(digest, PyBytes_AS_STRING(right), DIGEST_BYTES) == 0
    ):
        _context = NULL


_bind()


def merkle_root(list leaves not None):
    """`schemas.hashing.merkle_root`; None unless there are leaves, each of 32 bytes."""
    cdef Py_ssize_t count = len(leaves), at
    cdef unsigned char* level
    cdef unsigned char* odd
    cdef unsigned char pair[65]
    if not count:
        return None
    level = <unsigned char*> PyMem_Malloc(count * DIGEST_BYTES)
    if level == NULL:
        raise MemoryError
    try:
        for at in range(count):
            leaf = leaves[at]
            if not PyBytes_CheckExact(leaf) or PyBytes_GET_SIZE(leaf) != DIGEST_BYTES:
                return None
            memcpy(level + at * DIGEST_BYTES, PyBytes_AS_STRING(leaf), DIGEST_BYTES)
        pair[0] = 1
        while count > 1:
            for at in range(count // 2):
                memcpy(pair + 1, level + 2 * at * DIGEST_BYTES, 2 * DIGEST_BYTES)
                sha256(pair, 65, level + at * DIGEST_BYTES)
            if count & 1:
                odd = level + (count - 1) * DIGEST_BYTES
                memcpy(level + count // 2 * DIGEST_BYTES, odd, DIGEST_BYTES)
            count = (count + 1) // 2
        return PyBytes_FromStringAndSize(<const char*> level, DIGEST_BYTES)
    finally:
        PyMem_Free(level)
