"""Time by parts of a program: functions are wrapped by name while they are measured, and by nothing afterwards.

A profiler such as cProfile is called for every Python function and for none inside C, so that Python looks more
expensive than it is. Here only the functions that begin a part are wrapped, and what that costs is measured too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from time import perf_counter, thread_time
from typing import Any, NamedTuple, TypeAlias

REST = "rest"
"""Whatever belongs to no part."""
CALIBRATIONS = 21
CALIBRATION_CALLS = 500

Clock: TypeAlias = Callable[[], float]
Function: TypeAlias = Callable[..., Any]


class Point(NamedTuple):
    """A function with which a part begins; what it calls of other parts is theirs."""

    part: str
    owner: Any
    """The class, or the module that calls the function."""
    name: str


class TimerCost(NamedTuple):
    """Seconds that timing a call adds, and to whom."""

    caller: float
    called: float


class Stopwatch:
    """Charges the time that passes to one part at a time. Of one thread, which never waits.

    It reads the clock on the wall, which costs a fraction of what a thread's own does. Time that others had the core is
    taken off all parts alike.
    """

    def __init__(self, clock: Clock = perf_counter, cpu: Clock = thread_time) -> None:
        """`clock` is the one on the wall, `cpu` the thread's own; both in seconds."""
        self._clock = clock
        self._cpu = cpu
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[tuple[str, str]] = Counter()
        """By caller and called."""
        self._part = REST
        self.restart()

    def restart(self) -> None:
        """Forget what was timed before."""
        self._seconds.clear()
        self._calls.clear()
        self._cpu_began = self._cpu()
        self._began = self._since = self._clock()

    def switch(self, part: str, calls: int = 0) -> str:
        """From now on time is charged to `part`; the part before."""
        now = self._clock()
        before = self._part
        self._seconds[before] += now - self._since
        self._calls[before, part] += calls
        self._part = part
        # Read once more, so that the lines above are charged to nobody.
        self._since = self._clock()
        return before

    def calls(self, part: str) -> int:
        """How often the part was called since the restart."""
        return sum(calls for (_, called), calls in self._calls.items() if called == part)

    def timed(self, part: str, function: Function) -> Function:
        """`function`, charged to `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            caller = self.switch(part, calls=1)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(caller)

        return timed

    def spent(self, cost: TimerCost) -> dict[str, float]:
        """CPU seconds by part until now, without what the timer cost."""
        self.switch(self._part)
        share = (self._cpu() - self._cpu_began) / (self._clock() - self._began)
        spent = {part: seconds * share for part, seconds in self._seconds.items()}
        for (caller, part), calls in self._calls.items():
            spent[caller] -= calls * cost.caller
            spent[part] -= calls * cost.called
        return spent


def timer_cost() -> TimerCost:
    """Measured on a function that does nothing; medians, since others may take the core meanwhile."""
    costs = [_timer_cost() for _ in range(CALIBRATIONS)]
    return TimerCost(*map(median, zip(*costs, strict=True)))


def _timer_cost() -> TimerCost:
    stopwatch = Stopwatch()
    timed = stopwatch.timed("nothing", _nothing)
    before = perf_counter()
    for _ in range(CALIBRATION_CALLS):
        _nothing(None)
    bare = (perf_counter() - before) / CALIBRATION_CALLS
    stopwatch.restart()
    for _ in range(CALIBRATION_CALLS):
        timed(None)
    spent = stopwatch.spent(TimerCost(0.0, 0.0))
    return TimerCost(spent[REST] / CALIBRATION_CALLS, spent["nothing"] / CALIBRATION_CALLS - bare)


@contextmanager
def timing(stopwatch: Stopwatch, points: Iterable[Point]) -> Iterator[None]:
    """Charge the functions that the points name to their parts. Raises `LookupError` for one that is not there."""
    with ExitStack() as stack:
        for part, owner, name in points:
            stack.enter_context(replaced(owner, name, stopwatch.timed(part, lookup(owner, name))))
        yield


@contextmanager
def replaced(owner: Any, name: str, function: Function) -> Iterator[None]:
    """Let `function` stand in for another. Raises `LookupError` if that is not there."""
    original = lookup(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def lookup(owner: Any, name: str) -> Function:
    """A function by its name. Raises `LookupError`, also for one that is only inherited: it is not the one meant."""
    try:
        function: Function = vars(owner)[name]
    except KeyError:
        raise LookupError(f"{owner.__name__} has no function {name!r} of its own: was it renamed?") from None
    return function


def _nothing(_argument: object) -> None: ...
