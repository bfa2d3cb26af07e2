"""Wheels with the hot path compiled: `TRAILWEAVE_COMPILE=1`, as `make wheel` sets it.

Hatchling calls this when it builds. The modules below are compiled by Cython as they stand, and lie
beside their sources in the wheel; Python takes the compiled ones. One is written for Cython and has
a Python twin, which `codec` falls back to. Without the variable the wheel is pure, and an editable
install always is.
"""

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Written for Cython.
NATIVE: Final = ("schemas/trailweave/schemas", "native")
#: Pure modules that every event or every closing session passes through, by folder. The join's own
#: loop and the load's rows gain nothing: there the time is spent in libraries and generated code.
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
        sources = [(folder, f"{name}.py") for folder, names in MODULES.items() for name in names]
        sources.append((NATIVE[0], f"{NATIVE[1]}.pyx"))
        for folder, name in sources:
            package = folder.split("/", 1)[1]
            module = f"{package}/{name}".partition(".")[0].replace("/", ".")
            built = compiled(module, Path(self.root) / folder / name, out)
            build_data["force_include"][str(built)] = f"{package}/{built.name}"


def compiled(module: str, source: Path, out: Path) -> Path:
    """The extension module made of one source, in a folder for all that is made."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    # Ours are annotations for mypy, and say more than Cython may take for granted.
    directives = {"language_level": "3", "annotation_typing": False}
    extension = Extension(module, [str(source)], extra_compile_args=["-O2", "-g0"])
    made = cythonize(  # type: ignore[no-untyped-call]
        [extension], compiler_directives=directives, build_dir=str(out / "c"), quiet=True
    )
    command = build_ext(Distribution({"name": "trailweave", "ext_modules": made}))
    command.build_lib, command.build_temp = str(out / "lib"), str(out / "o")
    command.finalize_options()
    command.run()
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    return out / "lib" / (module.replace(".", "/") + suffix)
