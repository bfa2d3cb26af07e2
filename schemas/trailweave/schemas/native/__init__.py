"""What every event passes, in C: only in wheels that were built with a C compiler.

`reading` and `writing` walk a schema that `layout` has laid out once as an array of nodes, and
`hashing` hashes without an object per hash. They know the usual alone, and answer None for all
else: the caller then asks the Python that they stand in for, which decides, and says what is wrong.
So every answer given here is one that Python gives too; the tests hold the two together.
"""
