"""The modules that are written for Cython, as a wheel has them."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
HOOK = ROOT / "deploy" / "wheel" / "compile_hook.py"


def load(name: str, path: Path) -> ModuleType:
    """A module from where it lies."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def compiled(*rooms: str, out: Path) -> Iterator[dict[str, ModuleType]]:
    """Those of some rooms, by the last part of their names; skips without a compiler."""
    hook = load("compile_hook", HOOK)
    _needs_a_compiler(out)
    wanted = {folder: names for folder, names in hook.NATIVE.items() if folder.startswith(rooms)}
    with pytest.MonkeyPatch.context() as patched:
        found = {}
        for source in hook.sources(ROOT, wanted, ".pyx"):
            name = hook.module_name(source, ROOT)
            module = load(name, hook.compiled(source, ROOT, out))
            # Those that follow import it.
            patched.setitem(sys.modules, name, module)
            found[source.stem] = module
        yield found


def _needs_a_compiler(folder: Path) -> None:
    """Skip without one; where it compiles a line that is not ours, ours must compile as well."""
    probe = folder / "probe.c"
    probe.write_text("#include <Python.h>\n")
    compiler = shlex.split(str(sysconfig.get_config_var("CC")))
    include = f"-I{sysconfig.get_path('include')}"
    command = [*compiler, include, "-c", str(probe), "-o", str(folder / "probe.o")]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler, or no headers of Python: {error}")
