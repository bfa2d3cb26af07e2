"""Wheels with the hot path compiled: `TRAILWEAVE_COMPILE=1`, as `make wheel` sets it.

Hatchling calls this when it builds. The modules below are compiled by Cython as they stand, and lie
beside their sources in the wheel; Python takes the compiled ones. Those of `NATIVE` are written for
Cython, and stand in for Python that is used without them. Without the variable the wheel is pure,
and an editable install always is.
"""

import os
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Written for Cython, by folder; each after those that it needs.
NATIVE: Final = {
    "schemas/trailweave/schemas/native": ("layout", "reading", "writing", "hashing"),
    "stream_processors/trailweave/stream_processors": ("native_session",),
    "sinks/trailweave/sinks": ("native_columns",),
}
#: Pure modules that every event or every closing session passes through, by folder. The loops
#: of the workers gain nothing: there the time is spent in libraries.
MODULES: Final = {
    "schemas/trailweave/schemas": (
        "codec",
        "hashing",
        "ids",
        "layouts",
        "standing",
        "validity",
        "varint",
    ),
    "stream_processors/trailweave/stream_processors": (
        "bounds",
        "chain",
        "closing",
        "lanes",
        "ranges",
        "session",
        "verdict",
    ),
    "stream_processors/trailweave/stream_processors/rules": (
        "access",
        "approvals",
        "arguments",
        "calls",
        "causes",
        "context",
        "credentials",
        "delegation",
        "limits",
        "order",
        "records",
        "rule",
        "ruleset",
        "supply",
        "times",
    ),
}


class CustomBuildHook(BuildHookInterface[Any]):
    """Named so because hatchling looks for this name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add what was made to the wheel."""
        if not os.environ.get("TRAILWEAVE_COMPILE") or version == "editable":
            return
        build_data["pure_python"], build_data["infer_tag"] = False, True
        # Until the wheel is written: it goes with the hook.
        self._folder = tempfile.TemporaryDirectory(prefix="trailweave-compiled-")
        out = Path(self._folder.name)
        root = Path(self.root)
        for source in sources(root, MODULES, ".py") + sources(root, NATIVE, ".pyx"):
            built = compiled(source, root, out)
            package = source.relative_to(root).parent.parts[1:]
            build_data["force_include"][str(built)] = "/".join((*package, built.name))


def sources(root: Path, modules: Mapping[str, tuple[str, ...]], suffix: str) -> list[Path]:
    """The files of some modules."""
    return [
        root / folder / f"{name}{suffix}" for folder, names in modules.items() for name in names
    ]


def module_name(source: Path, root: Path) -> str:
    """As after `import`."""
    return ".".join(source.relative_to(root).with_suffix("").parts[1:])


def compiled(source: Path, root: Path, out: Path) -> Path:
    """The extension module made of one source of the project, in a folder for all that is made."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    # Ours are annotations for mypy, and say more than Cython may take for granted.
    directives = {"language_level": "3", "annotation_typing": False}
    module = module_name(source, root)
    extension = Extension(module, [str(source)], extra_compile_args=["-O2", "-g0"])
    made = cythonize(  # type: ignore[no-untyped-call]
        [extension],
        include_path=[str(root / folder.split("/", 1)[0]) for folder in NATIVE],
        compiler_directives=directives,
        build_dir=str(out / "c"),
        quiet=True,
    )
    command = build_ext(Distribution({"name": "trailweave", "ext_modules": made}))
    command.build_lib, command.build_temp = str(out / "lib"), str(out / "o")
    command.finalize_options()
    command.run()
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    return out / "lib" / (module.replace(".", "/") + suffix)
