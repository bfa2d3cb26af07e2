"""What only many sessions together show: `watch` runs these. Pure.

Records of the join and heartbeats say *facts*: each is for one detector and one key (a credential,
an approver's hour, a producer), under a name of its own within it, so that a record that comes
twice says the same once. A detector judges all facts of a key.
"""

from typing import Final

from trailweave.stream_processors.detectors import of_chains, of_producers
from trailweave.stream_processors.detectors.detector import VERSION, Detector

DETECTORS: Final = {one.name: one for one in (*of_chains.DETECTORS, *of_producers.DETECTORS)}

__all__ = ["DETECTORS", "VERSION", "Detector"]
