"""How closings are shared out; that children close them is tested with real ones."""

from __future__ import annotations

import marshal

import pytest
from trailweave.schemas.errors import Reason
from trailweave.stream_processors.closers import _answer, _balanced, _Pace, _told
from trailweave.stream_processors.closing import Sealed
from trailweave.stream_processors.lanes import Refused

SIZES = dict.fromkeys(range(60), 10)


REFUSED = Refused(2, 7, 1_000, None, b"\x00", Reason("not_avro", "it ends in the middle"))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "elsewhere",
        Sealed(b"k", "t", "acme", "chain", "counts", 1, b"chain", [("rule", b"finding")], []),
        Sealed(b"k", "t", "acme", "fragment", "idle", 0, b"chain", [], [REFUSED, REFUSED]),
    ],
)
def test_an_answer_comes_from_a_child_as_it_was_given(answer: Sealed | None) -> None:
    sent = marshal.dumps(_told(answer), 2)

    assert _answer(marshal.loads(sent)) == answer  # noqa: S302 - ours


def test_while_nothing_is_measured_all_shares_are_alike() -> None:
    assert [len(share) for share in _balanced(SIZES, 3, _Pace())] == [20, 20, 20]


@pytest.mark.parametrize("beside", [0.0, 50.0])
@pytest.mark.parametrize("theirs", [0.5, 1.0, 2.0])
def test_worker_and_children_are_done_at_the_same_time(theirs: float, beside: float) -> None:
    shares = _balanced(SIZES, 3, _Pace(own=1.0, theirs=theirs, beside=beside))
    worker, *children = [sum(SIZES[index] for index in share) for share in shares]
    done = [beside + worker, *(size * theirs for size in children)]

    assert sorted(index for share in shares for index in share) == list(SIZES)
    assert max(done) - min(done) <= 10 * max(1.0, theirs)


def test_a_worker_that_has_too_much_to_do_beside_leaves_all_to_the_children() -> None:
    shares = _balanced(SIZES, 2, _Pace(own=1.0, theirs=1.0, beside=10_000.0))

    assert [len(share) for share in shares] == [0, 60]


def test_a_child_that_was_slow_once_is_given_something_to_be_measured_by() -> None:
    _, share = _balanced(SIZES, 2, _Pace(own=1.0, theirs=1e6, beside=1.0))

    assert len(share) == 1


def test_a_worker_without_children_closes_everything() -> None:
    assert _balanced(SIZES, 1, _Pace(own=1.0, beside=5.0)) == [list(SIZES)]
