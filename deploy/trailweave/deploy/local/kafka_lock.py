"""Writes `kafka.lock.json`: `python -m trailweave.deploy.local.kafka_lock`.

Run by a maintainer who changes the version below, never at run time. Review the difference before
committing it: these bytes run on users' machines.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from trailweave.deploy.local.jars import download, repositories, sha256_of

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"
#: The broker, and the logger that the Kafka distribution adds to it. jgo takes the versions that
#: a coordinate's own build manages for all others as well; `!` says not to, for the logger's
#: build would otherwise bring an old Kafka client.
ENDPOINT = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
    f"+org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}!"
)
LOCK = Path(__file__).with_name("kafka.lock.json")

log = logging.getLogger(__name__)


def main() -> None:
    """Resolve the endpoint, download every jar anew, and write the lock."""
    import jgo

    logging.basicConfig(level=logging.INFO)
    jars = []
    with tempfile.TemporaryDirectory() as folder:
        for found in jgo.resolve(ENDPOINT, repositories=repositories()):
            path = download(found.groupId, found.artifactId, found.version, Path(folder))
            log.info("%s:%s:%s", found.groupId, found.artifactId, found.version)
            jars.append(
                {
                    "group": found.groupId,
                    "artifact": found.artifactId,
                    "version": found.version,
                    "sha256": sha256_of(path),
                }
            )
    LOCK.write_text(json.dumps({"kafka": KAFKA_VERSION, "jars": jars}, indent=1) + "\n")


if __name__ == "__main__":
    main()
