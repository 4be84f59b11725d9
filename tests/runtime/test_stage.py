"""Stages keep order, hold back the producer, hand on errors, and never hang."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator

import pytest

from llvq.errors import CacheError, SessionError
from llvq.runtime.stage import Stage

pytestmark = pytest.mark.timeout(5)
DEPTHS = pytest.mark.parametrize("depth", [0, 1, 3])


class Gate:
    """A function whose calls wait until the gate opens."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, item: int) -> tuple[int]:
        self.entered.set()
        assert self.open.wait(5)
        return (item,)


class Background:
    """A call on a thread of its own, with what it raised."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except SessionError as error:
            self.error = error

    def blocked(self) -> bool:
        self._thread.join(0.03)
        return self._thread.is_alive()

    def ended(self) -> bool:
        self._thread.join(2)
        return not self._thread.is_alive()


def square(item: int) -> tuple[int]:
    return (item * item,)


def fail_at_two(item: int) -> tuple[int]:
    if item == 2:
        raise ZeroDivisionError("two")
    return (item,)


@DEPTHS
def test_results_are_the_same_at_every_depth(depth: int) -> None:
    with Stage("square", square, depth=depth) as stage:
        collected = []
        for item in range(20):
            stage.submit(item)
            collected += stage.poll()
        stage.close()
        collected += stage.results()
    assert collected == [item * item for item in range(20)]


def test_depth_zero_runs_in_the_caller() -> None:
    with Stage("id", lambda _: [threading.get_ident()], depth=0) as stage:
        stage.submit(None)
        assert stage.poll() == [threading.get_ident()]


def test_a_thread_runs_beside_the_caller() -> None:
    with Stage("id", lambda _: [threading.current_thread().name], depth=1) as stage:
        stage.submit(None)
        assert next(stage.results()) == "llvq-id"


def test_a_full_inbox_holds_the_producer_back() -> None:
    gate = Gate()
    with Stage("slow", gate, depth=2) as stage:
        stage.submit(0)
        assert gate.entered.wait(2)
        stage.submit(1)
        stage.submit(2)
        producer = Background(lambda: stage.submit(3))
        assert producer.blocked()
        assert stage.poll() == []
        gate.open.set()
        assert producer.ended()
        stage.close()
        assert list(stage.results()) == [0, 1, 2, 3]


class Halves:
    """Two results of each item, the second behind a gate; an error after those of item 1."""

    def __init__(self) -> None:
        self.gate = Gate()

    def __call__(self, item: int) -> Iterator[tuple[int, int]]:
        yield item, 0
        yield item, self.gate(1)[0]
        if item == 1:
            raise ZeroDivisionError("one")


def test_a_result_is_there_before_the_next_of_its_item() -> None:
    halves = Halves()
    with Stage("half", halves, depth=1) as stage:
        stage.submit(0)
        results = stage.results()
        assert next(results) == (0, 0)
        assert not halves.gate.open.is_set()
        halves.gate.open.set()
        assert next(results) == (0, 1)
        stage.close()
        assert list(results) == []


@DEPTHS
def test_results_before_an_error_in_the_midst_of_an_item(depth: int) -> None:
    halves, found = Halves(), []
    halves.gate.open.set()
    with (
        pytest.raises(SessionError, match="stage half failed"),
        Stage("half", halves, depth=depth) as stage,
    ):
        stage.submit(0)
        stage.submit(1)
        stage.close()
        for result in stage.results():
            found.append(result)
    assert found == [(0, 0), (0, 1), (1, 0), (1, 1)]


@DEPTHS
def test_an_error_wakes_whoever_waits_for_room(depth: int) -> None:
    with (
        pytest.raises(SessionError, match="stage decode failed"),
        Stage("decode", fail_at_two, depth=depth) as stage,
    ):
        for _ in range(2 * depth + 2):
            stage.submit(2)


@DEPTHS
def test_an_error_follows_the_results_before_it(depth: int) -> None:
    with Stage("decode", fail_at_two, depth=depth) as stage:
        for item in range(3):
            stage.submit(item)
        results = stage.results()
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(SessionError, match="stage decode failed") as caught:
            next(results)
        with pytest.raises(SessionError, match="stage decode failed"):
            stage.submit(4)
        with pytest.raises(SessionError, match="stage decode failed"):
            stage.poll()
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "fail_at_two"


@DEPTHS
def test_an_llvq_error_is_raised_as_it_is(depth: int) -> None:
    original = CacheError("no such page")

    def fail(item: int) -> tuple[int]:
        raise original

    stage = Stage("denoise", fail, depth=depth)
    stage.submit(0)
    with pytest.raises(CacheError) as caught:
        next(stage.results())
    assert caught.value is original
    assert any(frame.name == "fail" for frame in traceback.extract_tb(original.__traceback__))


CHAINED = pytest.mark.parametrize("depths", [(0, 0), (1, 1), (3, 1), (1, 3)])


@CHAINED
def test_what_one_stage_makes_goes_into_the_next(depths: tuple[int, int]) -> None:
    with (
        Stage("square", square, depth=depths[1]) as last,
        Stage("twice", lambda item: (item, item), depth=depths[0], into=last) as first,
    ):
        for item in range(9):
            first.submit(item)
        first.close()
        assert list(last.results()) == [n * n for n in range(9) for _ in range(2)]


def test_a_slow_stage_holds_back_the_one_before_and_its_producer() -> None:
    gate = Gate()
    with Stage("slow", gate, depth=1) as last, Stage("fast", square, depth=1, into=last) as first:
        for item in range(2):
            first.submit(item)
        assert gate.entered.wait(2)
        # One in work and one that waits at the gate, one held back before it, one that waits.
        producer = Background(lambda: [first.submit(item) for item in range(2, 5)])
        assert producer.blocked()
        gate.open.set()
        assert producer.ended()
        first.close()
        assert list(last.results()) == [0, 1, 4, 9, 16]


@CHAINED
def test_an_error_comes_behind_what_the_next_stage_makes_of_the_items_before(
    depths: tuple[int, int],
) -> None:
    found = []
    with (
        pytest.raises(SessionError, match="stage first failed"),
        Stage("last", square, depth=depths[1]) as last,
        Stage("first", fail_at_two, depth=depths[0], into=last) as first,
    ):
        for item in range(3):
            first.submit(item)
        for result in last.results():
            found.append(result)
    assert found == [0, 1]


@CHAINED
def test_an_error_of_the_next_stage_ends_the_one_before(depths: tuple[int, int]) -> None:
    with (
        pytest.raises(SessionError, match="stage last failed"),
        Stage("last", fail_at_two, depth=depths[1]) as last,
        Stage("first", lambda item: (item,), depth=depths[0], into=last) as first,
    ):
        for item in range(30):
            first.submit(item)
    assert not first._worker.is_alive() and not last._worker.is_alive()


@CHAINED
def test_an_error_of_a_chain_that_nobody_collected_is_raised_at_the_end(
    depths: tuple[int, int],
) -> None:
    with (
        pytest.raises(SessionError, match="stage first failed"),
        Stage("last", square, depth=depths[1]) as last,
        Stage("first", fail_at_two, depth=depths[0], into=last) as first,
    ):
        first.submit(2)


def test_cancel_wakes_a_chain() -> None:
    gate = Gate()
    with Stage("slow", gate, depth=1) as last, Stage("fast", square, depth=3, into=last) as first:
        for item in range(4):
            first.submit(item)
        assert gate.entered.wait(2)
        consumer = Background(lambda: list(last.results()))
        assert consumer.blocked()
        first.cancel()
        assert consumer.ended() and "was cancelled" in str(consumer.error)
        first._worker.join(2)
        assert not first._worker.is_alive()
        gate.open.set()


@DEPTHS
def test_an_error_that_ends_the_program_is_raised_as_it_is(depth: int) -> None:
    def leave(item: int) -> tuple[int]:
        raise SystemExit(3)

    stage = Stage("denoise", leave, depth=depth)
    stage.submit(0)
    with pytest.raises(SystemExit):
        next(stage.results())


@DEPTHS
def test_an_error_that_nobody_collected_is_raised_at_the_end(depth: int) -> None:
    with (
        pytest.raises(SessionError, match="stage decode failed"),
        Stage("decode", fail_at_two, depth=depth) as stage,
    ):
        stage.submit(2)


def test_an_error_wakes_a_waiting_producer_and_consumer() -> None:
    gate = Gate()

    def fail_behind_gate(item: int) -> tuple[int]:
        return (1 // gate(item)[0],)

    stage = Stage("decode", fail_behind_gate, depth=1)
    stage.submit(0)
    assert gate.entered.wait(2)
    stage.submit(1)
    waiting = [Background(lambda: stage.submit(2)), Background(lambda: next(stage.results()))]
    assert all(one.blocked() for one in waiting)
    gate.open.set()
    assert all(one.ended() for one in waiting)
    assert all(isinstance(one.error, SessionError) for one in waiting)


def test_cancel_wakes_a_waiting_producer_and_consumer() -> None:
    gate = Gate()
    with Stage("decode", gate, depth=1) as stage:
        stage.submit(0)
        assert gate.entered.wait(2)
        stage.submit(1)
        waiting = [Background(lambda: stage.submit(2)), Background(lambda: list(stage.results()))]
        assert all(one.blocked() for one in waiting)
        stage.cancel()
        stage.cancel()
        assert all(one.ended() for one in waiting)
        assert all("was cancelled" in str(one.error) for one in waiting)
        gate.open.set()
    with pytest.raises(SessionError, match="was cancelled"):
        stage.poll()


def test_cancel_drops_what_was_made_and_what_waits() -> None:
    gate, seen = Gate(), []

    def note(item: int) -> tuple[int]:
        seen.append(item)
        return gate(item)

    stage = Stage("decode", note, depth=2)
    for item in range(3):
        stage.submit(item)
    assert gate.entered.wait(2)
    stage.cancel()
    gate.open.set()
    stage._worker.join(2)
    assert not stage._worker.is_alive()
    assert seen == [0]
    with pytest.raises(SessionError, match="was cancelled"):
        list(stage.results())


@DEPTHS
def test_a_consumer_may_stop_early(depth: int) -> None:
    with Stage("square", square, depth=depth) as stage:
        stage.submit(2)
        stage.submit(3)
        for result in stage.results():
            assert result == 4
            break
    assert not stage._worker.is_alive()


@DEPTHS
def test_an_error_in_the_block_cancels(depth: int) -> None:
    with pytest.raises(KeyError), Stage("square", square, depth=depth) as stage:
        stage.submit(2)
        raise KeyError
    assert not stage._worker.is_alive()
    with pytest.raises(SessionError, match="was cancelled"):
        stage.submit(3)


@DEPTHS
def test_close_twice_and_submit_after(depth: int) -> None:
    stage = Stage("square", square, depth=depth)
    stage.submit(2)
    stage.close()
    stage.close()
    assert list(stage.results()) == [4]
    assert list(stage.results()) == []
    with pytest.raises(SessionError, match="is closed"):
        stage.submit(3)


def test_close_wakes_a_waiting_consumer() -> None:
    stage = Stage("square", square, depth=1)
    consumer = Background(lambda: list(stage.results()))
    assert consumer.blocked()
    stage.close()
    assert consumer.ended()


def test_a_negative_depth_is_refused() -> None:
    with pytest.raises(SessionError, match="depth -1"):
        Stage("square", square, depth=-1)
