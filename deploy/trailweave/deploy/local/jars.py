"""The jars of an embedded Java program: found by jgo, pinned by a lock file, verified on every use.

Used by `kafka.py` to get a class path and by `kafka_lock.py` to write the lock. What the lock
doesn't name is never downloaded; what doesn't match it is never run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trailweave.deploy.local.errors import EngineError, JarMismatchError

log = logging.getLogger(__name__)

#: One jar at a time leaves the line idle; more than this is rude to a public repository.
DOWNLOADS_AT_ONCE = 6
DOWNLOAD_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock: which artifact, and the digest of its bytes."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def read_lock(path: Path) -> list[Jar]:
    """The jars of a lock file, in class path order."""
    return [Jar(**entry) for entry in json.loads(path.read_text())["jars"]]


def default_cache() -> Path:
    """Where verified jars are kept; `TRAILWEAVE_JARS` names another directory."""
    if named := os.environ.get("TRAILWEAVE_JARS"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trailweave" / "jars"


def class_path(jars: Iterable[Jar], cache: Path) -> str:
    """Paths of the jars, joined for `java -cp`; downloads what the cache lacks.

    Raises `JarMismatchError` when bytes differ from the lock, `EngineError` when one can't be had.
    """
    jars = list(jars)
    missing = [jar for jar in jars if not (cache / jar.file_name).exists()]
    if missing:
        log.info("downloading %d jars to %s", len(missing), cache)
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            # list() makes the first failure come out here.
            list(pool.map(lambda jar: _fetch(jar, cache), missing))
    # On every start, also for cached jars: hashing 45 MB takes 40 ms and makes the lock mean
    # that these bytes ran, not that they were once downloaded.
    for jar in jars:
        _verify(jar, cache / jar.file_name)
    return os.pathsep.join(str(cache / jar.file_name) for jar in jars)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(group: str, artifact: str, version: str, into: Path) -> Path:
    """One jar by jgo, from the repositories that the user's jgo settings name, into a new folder.

    The result is not verified.
    """
    from jgo.maven import MavenContext  # the extra `local` brings it

    # Not jgo's own cache: it writes files in place, so a process that dies in between leaves
    # half a jar under its final name.
    context = MavenContext(repo_cache=into, remote_repos=repositories(), timeout=DOWNLOAD_TIMEOUT_S)
    found = context.project(group, artifact).at_version(version).artifact().resolve()
    return Path(found)


def repositories() -> dict[str, str]:
    """Maven Central, and the repositories or mirrors of the user's jgo settings before it."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL

    return {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}


def _fetch(jar: Jar, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".incoming-") as folder:
        try:
            incoming = download(jar.group, jar.artifact, jar.version, Path(folder))
        except (RuntimeError, OSError) as why:
            raise EngineError(
                f"couldn't download {jar.coordinate}: {why}; connect to a network once,"
                f" or put the file into {cache} as {jar.file_name}"
            ) from why
        _verify(jar, incoming)
        # Into place only when verified and whole: two processes may do this at once.
        incoming.replace(cache / jar.file_name)


def _verify(jar: Jar, path: Path) -> None:
    found = sha256_of(path)
    if found != jar.sha256:
        raise JarMismatchError(
            f"couldn't use {jar.coordinate}: {path} has SHA-256 {found}, the lock says"
            f" {jar.sha256}; remove the file to download it again, and don't run it"
        )
