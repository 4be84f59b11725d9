"""One step of the pipeline on a thread of its own, behind a bounded inbox.

A full inbox makes the producer wait, so that a slow stage holds back a fast one instead of
filling memory. Results keep the order of the items. An error, or a cancel, wakes everybody.
Stages make a chain: what one makes goes into the next, and so does its error and its end.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from llvq.errors import LlvqError, SessionError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Failure:
    """An error in place of an item: whoever collects meets it behind what came before."""

    error: BaseException


class Stage(Generic[Item, Result]):
    """Runs `fn` on each submitted item, for what it gives one by one. Up to `depth` items wait
    while one is worked on.

    Depth 0 has no thread: `submit` runs `fn` in the caller, with the same results. With a thread,
    `fn` must enter its own `torch.inference_mode` and CUDA stream, which are per thread. Results
    wait without bound for `poll()` or `results()`: collect between submits. Or they are items of
    the stage `into`, which has to be entered before this one and ends when this one does.

    The `with` block ends with `close()` and waits for the work; left by an error, with `cancel()`.
    An error of `fn` is raised, after the results before it, by whoever collects or submits next:
    an LlvqError as it is, any other as the cause of a SessionError.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[[Item], Iterable[Result]],
        *,
        depth: int,
        into: Stage[Result, Any] | None = None,
    ) -> None:
        if depth < 0:
            raise SessionError(f"stage {name} has depth {depth}", fix="use 0 (no thread) or more")
        self.name = name
        self._fn, self._depth, self._into = fn, depth, into
        self._inbox: deque[Item | _Failure] = deque()
        self._outbox: deque[Result] = deque()
        self._busy = self._closed = self._told = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()  # guards all of the above
        self._worker = threading.Thread(target=self._work, name=f"llvq-{name}", daemon=True)
        if depth:
            self._worker.start()

    def submit(self, item: Item) -> None:
        """Hand over an item, waiting while the inbox is full. Raises if the stage has ended."""
        with self._changed:
            self._changed.wait_for(self._answers)
            self._raise_error()
            if self._closed:
                raise SessionError(f"stage {self.name} is closed", fix="submit before close()")
            if self._depth:
                self._inbox.append(item)
                self._changed.notify_all()
                return
        self._run(item)

    def poll(self) -> list[Result]:
        """The results that are ready, without waiting; the error once there are none."""
        with self._changed:
            ready = list(self._outbox)
            self._outbox.clear()
            if not ready:
                self._raise_error()
            return ready

    def results(self) -> Iterator[Result]:
        """Each result as it comes, until the stage is closed and all its work collected."""
        while True:
            with self._changed:
                self._changed.wait_for(self._delivers)
                if not self._outbox:
                    self._raise_error()
                    return
                result = self._outbox.popleft()
            yield result

    def close(self) -> None:
        """Take no more items. Those submitted are still worked on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._into is not None and not self._depth:
            self._into.close()

    def fail(self, error: BaseException) -> None:
        """End with an error once the items before it are worked on. Does not wait."""
        failure = _Failure(error)
        with self._changed:
            self._closed = True
            if self._depth and self._error is None:
                self._inbox.append(failure)
            self._changed.notify_all()
        if not self._depth:
            self._run(failure)

    def cancel(self) -> None:
        """Drop what waits, in and out; an item in work is finished and dropped. Does not wait."""
        with self._changed:
            if self._error is None:
                self._told = True  # whoever cancels knows
                self._end(SessionError(f"stage {self.name} was cancelled"))
            self._outbox.clear()
        if self._into is not None:
            self._into.cancel()

    def __enter__(self) -> Stage[Item, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.cancel()
        if self._depth:
            self._worker.join()
        del self._fn  # an error's traceback holds the stage, which need not hold what `fn` is of
        if error is None and not self._told:
            self._raise_error()

    def _answers(self) -> bool:
        room = self._depth == 0 or len(self._inbox) < self._depth
        return room or self._closed or self._error is not None

    def _delivers(self) -> bool:
        done = self._closed and not self._inbox and not self._busy
        return bool(self._outbox) or done or self._error is not None

    def _raise_error(self) -> None:
        if self._error is not None:
            self._told = True
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if not self._inbox:
                    break
                item = self._inbox.popleft()
                self._busy = True
                self._changed.notify_all()
            self._run(item)
        if self._into is not None:
            self._into.close()

    def _has_work(self) -> bool:
        return bool(self._inbox) or self._closed or self._error is not None

    def _run(self, item: Item | _Failure) -> None:
        with _Catch() as caught:
            if isinstance(item, _Failure):
                raise item.error
            for result in self._fn(item):
                self._deliver(result)
        with self._changed:
            self._busy = False
            if caught.error is not None:
                self._end(_session_error(self.name, caught.error))
            self._changed.notify_all()
        if self._error is not None and self._into is not None:
            self._into.fail(self._error)

    def _deliver(self, result: Result) -> None:
        if self._into is not None:
            self._into.submit(result)
            return
        with self._changed:
            if self._error is None:
                self._outbox.append(result)
                self._changed.notify_all()

    def _end(self, error: BaseException) -> None:
        """Record the first error. The lock is held."""
        self._error = self._error or error
        self._inbox.clear()
        self._changed.notify_all()


class _Catch:
    """Holds the error of its block. A thread has no caller to raise to, whatever the error."""

    error: BaseException | None = None

    def __enter__(self) -> _Catch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.error = error
        # The lines stay to be read; what was in the variables may be all memory of a device.
        traceback.clear_frames(trace)
        return True


def _session_error(name: str, error: BaseException) -> BaseException:
    """What to raise for an error of `fn`: itself if it speaks to the user or ends the program."""
    if isinstance(error, LlvqError) or not isinstance(error, Exception):
        return error
    failure = SessionError(
        f"stage {name} failed",
        because=f"{type(error).__name__}: {error}",
        fix="see the traceback of the cause, above",
    )
    failure.__cause__ = error
    return failure
