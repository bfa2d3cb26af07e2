"""What can go wrong with an embedded engine. Raised by this package, shown by the command line.

All of these are fatal: nothing that a worker could do by waiting cures them.
"""

from trailweave.schemas.errors import Fatal


class EngineError(Fatal):
    """An embedded engine couldn't start, or stopped by itself."""


class DataDirInUseError(EngineError):
    """Another process runs an engine on this data directory."""


class JarMismatchError(EngineError):
    """A jar's bytes are not those of the lock file; it was not put on the class path."""


class UnsafeBindingError(EngineError):
    """An engine without a password was asked to listen beyond this machine."""
