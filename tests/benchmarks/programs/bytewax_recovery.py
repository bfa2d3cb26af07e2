"""The join in Bytewax with its SQLite recovery: at least once, a snapshot each half second."""

# mypy: disable-error-code="import-not-found"
# The peers live in an environment of their own.

from datetime import timedelta
from typing import Final

from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from tests.benchmarks.programs.bytewax_flow import dataflow
from tests.benchmarks.programs.told import arguments

#: As often as Kafka Streams commits.
EPOCH: Final = timedelta(seconds=0.5)


def main() -> None:
    """Run until killed."""
    told = arguments()
    told.state.mkdir()
    init_db_dir(told.state, 1)
    cli_main(dataflow(told), epoch_interval=EPOCH, recovery_config=RecoveryConfig(told.state))


if __name__ == "__main__":
    main()
