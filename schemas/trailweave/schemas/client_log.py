"""librdkafka's own lines in our log: each kind once in a while, none raw on the terminal.

While a broker is away a client says so several times a second, for hours if need be, and each of
its connections does. Pure but for what `logging` keeps.
"""

import logging
from typing import Final

#: How confluent-kafka hands on a line: facility ("FAIL", "SESSTMOUT"), client, text.
LINE: Final = "%s [%s] %s"
#: A line of the same facility is not said again for so long, by the time of the records.
INTERVAL_S: Final = 10.0


class Rarely(logging.Filter):
    """Lets the first line of each facility pass, and later ones with the number left out."""

    def __init__(self) -> None:
        super().__init__()
        #: Per facility, when it was last said, and the lines left out since.
        self._said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record passes; only lines of librdkafka's may be left out."""
        if record.msg != LINE or not isinstance(record.args, tuple):
            return True
        facility = str(record.args[0])
        at, left_out = self._said.get(facility, (float("-inf"), 0))
        if record.created - at < INTERVAL_S:
            self._said[facility] = (at, left_out + 1)
            return False
        self._said[facility] = (record.created, 0)
        if left_out:
            record.msg = f"{LINE} (%d more like it were left out)"
            record.args = (*record.args, left_out)
        return True


def client_log(log: logging.Logger) -> logging.Logger:
    """The logger, fit to be given to a Kafka client that is polled."""
    if not any(isinstance(own, Rarely) for own in log.filters):
        log.addFilter(Rarely())
    return log
