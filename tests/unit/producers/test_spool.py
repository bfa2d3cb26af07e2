"""The disk spool: nothing that was appended is lost, whatever happens to process or disk."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from trailweave.producers.frames import MAGIC, Stored, write_frame
from trailweave.producers.spool import DAMAGED, FAILED, NoRoom, Spool, Taken
from trailweave.schemas.errors import Fatal

LIMIT = 1 << 20


def event(number: int, size: int = 10) -> Stored:
    return Stored("trailweave.tools", b"k" * 32, f"{number:08}".encode() + b"." * size)


def number_of(taken: Taken) -> int:
    return int(taken.stored.value[:8])


def take_all(spool: Spool) -> list[Taken]:
    taken = []
    while (each := spool.take()) is not None:
        taken.append(each)
    return taken


def fill(spool: Spool, count: int) -> None:
    """Append so many; the error says how many were taken before it."""
    for number in range(count):
        try:
            spool.append(event(number))
        except NoRoom as error:
            error.add_note(str(number))
            raise


def files(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.segment"))


def die(spool: Spool) -> None:
    """What a SIGKILL leaves: descriptors and locks gone, files as they are."""
    spool.abandon()


def test_events_come_back_in_order_while_others_are_appended(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    spool.append(event(0))
    first = spool.take()
    spool.append(event(1))

    assert first is not None
    assert [number_of(each) for each in (first, *take_all(spool))] == [0, 1]


def test_an_event_longer_than_a_read_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", 4 << 20)
    for number in range(3):
        spool.append(event(number, 900_000))

    assert [number_of(each) for each in take_all(spool)] == [0, 1, 2]


def test_what_was_given_back_is_taken_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    for number in range(3):
        spool.append(event(number))
    for taken in take_all(spool):
        spool.give_back(taken)

    assert sorted(map(number_of, take_all(spool))) == [0, 1, 2]


def test_a_segment_goes_only_when_all_of_it_is_acknowledged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    for number in range(2):
        spool.append(event(number))
    first, second = take_all(spool)
    spool.acknowledge(first)
    spool.recycle(0)
    kept = files(tmp_path)
    spool.acknowledge(second)
    spool.recycle(0)

    assert len(kept) == 1
    assert files(tmp_path) == []
    assert spool.bytes == 0


def test_closing_an_acknowledged_spool_leaves_no_folder(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    spool.append(event(0))
    for taken in take_all(spool):
        spool.acknowledge(taken)
    spool.close()

    assert sorted(path.name for path in tmp_path.iterdir()) == [DAMAGED, FAILED]


def test_a_dead_process_is_adopted_and_a_living_one_is_not(tmp_path: Path) -> None:
    dead, living = Spool(tmp_path, "dead", LIMIT), Spool(tmp_path, "living", LIMIT)
    dead.append(event(1))
    living.append(event(2))
    die(dead)
    heir = Spool(tmp_path, "heir", LIMIT)
    heir.adopt()
    taken = take_all(heir)
    for each in taken:
        heir.acknowledge(each)

    assert [number_of(each) for each in taken] == [1]
    assert taken[0].segment.adopted
    assert not list(tmp_path.glob("dead-*"))
    assert list(tmp_path.glob("living-*"))


def test_only_one_heir_adopts(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "dead", LIMIT)
    dead.append(event(1))
    die(dead)
    heirs = [Spool(tmp_path, f"heir{n}", LIMIT) for n in range(2)]

    assert [heir.adopt() for heir in heirs] == [1, 0]


def test_an_heir_that_dies_too_is_inherited(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "dead", LIMIT)
    dead.append(event(1))
    die(dead)
    heir = Spool(tmp_path, "heir", LIMIT)
    heir.adopt()
    take_all(heir)
    die(heir)
    last = Spool(tmp_path, "last", LIMIT)
    last.adopt()

    assert [number_of(each) for each in take_all(last)] == [1]


def test_a_segment_cut_anywhere_gives_its_whole_events_and_reports_the_rest(
    tmp_path: Path,
) -> None:
    whole = MAGIC + b"".join(write_frame(event(n)) for n in range(3))
    ends = [len(MAGIC) + sum(len(write_frame(event(n))) for n in range(k)) for k in range(4)]
    for cut in range(len(whole)):
        directory = tmp_path / str(cut)
        (directory / "dead-1").mkdir(parents=True)
        (directory / "dead-1" / "lock").touch()
        (directory / "dead-1" / "00000001.segment").write_bytes(whole[:cut])
        heir = Spool(directory, "heir", LIMIT)
        heir.adopt()
        found = [number_of(each) for each in take_all(heir)]
        heir.abandon()

        complete = sum(end <= cut for end in ends[1:])
        torn = cut not in ends and cut > 0
        assert found == list(range(complete)), cut
        assert heir.damaged == torn, cut
        kept = [path.read_bytes() for path in (directory / DAMAGED).iterdir()]
        start = max((end for end in ends if end <= cut), default=0)
        assert kept == ([whole[start:cut]] if torn else []), cut


def test_a_damaged_event_among_whole_ones_costs_only_itself(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "dead", LIMIT)
    for number in range(3):
        dead.append(event(number))
    die(dead)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(MAGIC) + len(write_frame(event(0))) + 60] ^= 1
    path.write_bytes(content)
    heir = Spool(tmp_path, "heir", LIMIT)
    heir.adopt()

    assert [number_of(each) for each in take_all(heir)] == [0, 2]
    assert heir.damaged == 1


def test_the_limit_refuses_with_a_message_and_takes_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path, "p", 1000)
    with pytest.raises(NoRoom, match=r"holds \d+ bytes and its limit is 1000"):
        fill(spool, 100)
    for taken in take_all(spool):
        spool.acknowledge(taken)
    spool.recycle(0)
    spool.append(event(7))

    assert [number_of(each) for each in take_all(spool)] == [7]


def failing(after: int, partial: bool) -> Callable[[int, bytes], int]:
    """A disk that is full after some bytes, with or without half of the last write."""
    left = after

    def write(fd: int, data: bytes) -> int:
        nonlocal left
        if len(data) > left:
            if partial and left:
                done = os.write(fd, data[:left])
                left = 0
                return done
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= len(data)
        return os.write(fd, data)

    return write


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("room", [0, 4, 8, 40, 100, 200])
def test_a_full_disk_refuses_and_loses_nothing_taken(
    tmp_path: Path, room: int, partial: bool
) -> None:
    spool = Spool(tmp_path, "p", LIMIT, failing(room, partial))
    with pytest.raises(NoRoom, match="No space left on device") as refused:
        fill(spool, 10)
    taken = int(refused.value.__notes__[0])
    die(spool)
    heir = Spool(tmp_path, "heir", LIMIT)
    heir.adopt()

    assert [number_of(each) for each in take_all(heir)] == list(range(taken))
    assert heir.damaged == 0


def test_a_real_file_size_limit_is_a_clear_message(tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
from trailweave.producers.frames import Stored
from trailweave.producers.spool import NoRoom, Spool
spool = Spool(Path({str(tmp_path)!r}), "p", 1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
taken = 0
try:
    while True:
        spool.append(Stored("t", b"k", b"x" * 400)); taken += 1
except NoRoom as error:
    print(taken, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heir = Spool(tmp_path, "heir", LIMIT)
    heir.adopt()

    assert "File too large" in done.stdout
    assert len(take_all(heir)) == int(done.stdout.split()[0]) > 5


def test_refused_events_are_kept_apart_with_their_reason(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    spool.keep_failed(Stored("t", b"k", b"00000003", "too large"))
    spool.close()
    plain, told = Spool(tmp_path, "a", LIMIT), Spool(tmp_path, "b", LIMIT)

    assert plain.adopt() == 0
    assert told.adopt(failed=True) == 1
    (taken,) = take_all(told)
    assert taken.stored.note == "too large"


def test_refused_events_of_a_living_process_are_left_to_it(tmp_path: Path) -> None:
    living, told = Spool(tmp_path, "a", LIMIT), Spool(tmp_path, "b", LIMIT)
    living.keep_failed(event(1))

    assert told.adopt(failed=True) == 0
    assert living.adopt(failed=True) == 0


def test_a_directory_that_can_not_be_made_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(
        Fatal, match=r"couldn't use the spool directory .*TRAILWEAVE_PRODUCER_SPOOL"
    ):
        Spool(tmp_path / "file" / "spool", "p", LIMIT)


def test_the_spool_is_closed_to_other_users(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "p", LIMIT)
    spool.append(event(0))
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "spool").rglob("*")}

    assert modes == {0}


def test_what_is_to_be_synced_is_named_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "p", LIMIT)
    spool.append(event(0))
    fds = spool.to_sync()
    for fd in fds:
        os.fdatasync(fd)
        os.close(fd)

    assert len(fds) == 1
    assert spool.to_sync() == []
