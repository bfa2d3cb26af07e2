"""Parts that end are started again, later and later; a stop goes backwards."""

from trailweave.deploy.supervisor import BACKOFF_FIRST_S, STEADY_S, Supervisor
from trailweave.schemas.errors import Fatal


class FakePart:
    """A part that runs until told otherwise; `log` is shared by all of a test."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log
        self.running = False
        self.broken = False

    def start(self) -> None:
        if self.broken:
            raise Fatal("couldn't start: broken")
        self.running = True
        self.log.append(f"start {self.name}")

    def stop(self) -> None:
        self.running = False
        self.log.append(f"stop {self.name}")


def supervised(*names: str) -> tuple[Supervisor, list[FakePart], list[str]]:
    log: list[str] = []
    parts = [FakePart(name, log) for name in names]
    supervisor = Supervisor()
    for part in parts:
        supervisor.add(part.name, part)
    return supervisor, parts, log


def test_parts_stop_in_the_opposite_order_of_their_start() -> None:
    supervisor, _, log = supervised("kafka", "join", "load")
    supervisor.stop()

    assert log[3:] == ["stop load", "stop join", "stop kafka"]


def test_a_part_that_ended_is_started_again_after_a_pause() -> None:
    supervisor, (part,), _ = supervised("join")
    part.running = False
    supervisor.check(1000.0)
    before = part.running
    supervisor.check(1000.0 + BACKOFF_FIRST_S)

    assert (before, part.running) == (False, True)
    assert supervisor.restarts == {"join": 1}


def test_the_pause_doubles_while_a_part_keeps_ending() -> None:
    supervisor, (part,), _ = supervised("join")
    now = 1000.0
    pauses = []
    for _ in range(3):
        part.running = False
        supervisor.check(now)
        began = now
        while not part.running:
            now += 0.1
            supervisor.check(now)
        pauses.append(round(now - began, 1))

    assert pauses == [0.5, 1.0, 2.0]


def test_a_part_that_ran_long_enough_begins_with_a_short_pause_again() -> None:
    supervisor, (part,), _ = supervised("join")
    now = 1000.0
    for _ in range(3):
        part.running = False
        supervisor.check(now)
        now += 10
        supervisor.check(now)
    part.running = False
    now += STEADY_S + 1
    supervisor.check(now)
    supervisor.check(now + BACKOFF_FIRST_S)

    assert part.running


def test_a_part_that_cannot_start_is_tried_again() -> None:
    supervisor, (part,), _ = supervised("join")
    part.running, part.broken = False, True
    supervisor.check(1000.0)
    supervisor.check(1001.0)
    part.broken = False
    supervisor.check(1010.0)

    assert part.running
