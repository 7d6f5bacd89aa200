"""Run a program of tasks: who starts when, who waits for what, and how fast copies go meanwhile.

Time advances from event to event: a task starts as soon as its stream is free, the tasks it waits for have ended and
its buffers fit; between events the rates of copies are constant (`sharing`). Where several tasks wait for the same
room, the one issued first is served first, and none issued later may take it meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.streams.program import Hold, Program, Task
from peakline.streams.sharing import fair_rates
from peakline.streams.timeline import Run, Stall, Timeline

__all__ = ["Deadlock", "simulate"]


class Deadlock(ValueError):
    """Nothing runs and nothing can start: the memory is full of what waiting tasks need.

    Attributes:
        task: number of the first task that waits for room.
        tier, needed, free: where, and how many bytes it asks for and finds.
    """

    def __init__(self, number: int, task: Task, tier: str, needed: int, free: int) -> None:
        self.task, self.tier, self.needed, self.free = number, tier, needed, free
        super().__init__(
            f"task {number} ({task.name!r}) needs {needed:,} bytes in {tier}, where {free:,} are free, "
            f"and nothing that runs will free more: {needed - free:,} bytes short"
        )


@dataclass(slots=True)
class _Active:
    """A task that runs: what is left of its computing and of its bytes."""

    number: int
    seconds: float
    moves: float


def simulate(program: Program) -> Timeline:
    """The timeline of `program`.

    Raises:
        ValueError: the program is not well formed (`Program.check`), or its initial buffers exceed a tier.
        Deadlock: a task can never start.
    """
    program.check()
    return _Simulation(program).run()


class _Simulation:
    """The state while events happen."""

    def __init__(self, program: Program) -> None:
        self.program = program
        tasks = program.tasks
        self.queues: dict[str, list[int]] = {}
        for number, task in enumerate(tasks):
            self.queues.setdefault(task.stream, []).append(number)
        self.heads = dict.fromkeys(self.queues, 0)
        self.start = [0.0] * len(tasks)
        self.end: list[float | None] = [None] * len(tasks)
        self.active: list[_Active] = []
        self.busy: set[str] = set()
        self.buffers: dict[str, Hold] = {}
        self.used = {tier.name: tier.held for tier in program.tiers.values()}
        self.levels: dict[str, list[tuple[float, int]]] = {name: [(0.0, held)] for name, held in self.used.items()}
        self.events: list[tuple[Hold, bool]] = []
        self.moved = dict.fromkeys(program.links, 0)
        self.link_busy = dict.fromkeys(program.links, 0.0)
        self.bandwidth = {link.name: link.bandwidth for link in program.links.values()}
        self.now = 0.0

    def run(self) -> Timeline:
        for hold in self.program.initial:
            self._allocate(hold)
        for name, tier in self.program.tiers.items():
            if tier.capacity is not None and self.used[name] > tier.capacity:
                raise ValueError(f"tier {name!r} holds {self.used[name]:,} bytes at the start, of {tier.capacity:,}")
        left = len(self.program.tasks)
        while left:
            self._start_all()
            if not self.active:
                self._refuse()
            left -= self._advance()
        return self._timeline()

    # ---- starting -------------------------------------------------------------------------------------------------
    def _start_all(self) -> None:
        """Start every task that may, in order of issue."""
        waiting = sorted(
            queue[self.heads[stream]]
            for stream, queue in self.queues.items()
            if stream not in self.busy and self.heads[stream] < len(queue)
        )
        promised: set[str] = set()  # tiers for whose room an earlier task waits already
        for number in waiting:
            task = self.program.tasks[number]
            if any(self.end[other] is None for other in task.after):
                continue
            short = self._shortage(task)
            if short is not None:
                promised.add(short[0])
            elif not any(hold.tier in promised for hold in task.holds):
                self._begin(number, task)

    def _begin(self, number: int, task: Task) -> None:
        for hold in task.holds:
            self._allocate(hold)
        latency = sum(self.program.links[name].latency for name in task.links) if task.moves else 0.0
        self.active.append(_Active(number, task.seconds + latency, float(task.moves)))
        self.start[number] = self.now
        self.busy.add(task.stream)
        self.heads[task.stream] += 1

    def _shortage(self, task: Task) -> tuple[str, int, int] | None:
        """(tier, needed, free) of the first tier without room for the task's buffers."""
        needs: dict[str, int] = {}
        for hold in task.holds:
            needs[hold.tier] = needs.get(hold.tier, 0) + hold.bytes
        for name, needed in needs.items():
            capacity = self.program.tiers[name].capacity
            if capacity is not None and self.used[name] + needed > capacity:
                return name, needed, capacity - self.used[name]
        return None

    def _refuse(self) -> None:
        for stream, queue in self.queues.items():
            if self.heads[stream] < len(queue):
                number = queue[self.heads[stream]]
                short = self._shortage(self.program.tasks[number])
                if short is not None and all(self.end[o] is not None for o in self.program.tasks[number].after):
                    raise Deadlock(number, self.program.tasks[number], *short)
        raise AssertionError("a program whose tasks wait for earlier ones only cannot stop without a shortage")

    # ---- running --------------------------------------------------------------------------------------------------
    def _advance(self) -> int:
        """Go to the next event; the number of tasks that ended."""
        copying = [a for a in self.active if a.seconds <= 0.0 and a.moves > 0.0]
        routes = [self.program.tasks[a.number].links for a in copying]
        rates = fair_rates(routes, self.bandwidth)
        span = min(
            [
                *(a.seconds for a in self.active if a.seconds > 0.0),
                *(a.moves / rate for a, rate in zip(copying, rates)),
                *(0.0 for a in self.active if a.seconds <= 0.0 and a.moves <= 0.0),
            ]
        )
        self.now += span
        for link in {link for route in routes for link in route}:
            self.link_busy[link] += span
        for a in self.active:
            if a.seconds > 0.0:
                a.seconds = 0.0 if a.seconds <= span else a.seconds - span
        for a, rate in zip(copying, rates):
            left = a.moves - rate * span
            a.moves = 0.0 if a.moves / rate <= span or left <= 0.0 else left
        ended = [a for a in self.active if a.seconds <= 0.0 and a.moves <= 0.0]
        self.active = [a for a in self.active if a.seconds > 0.0 or a.moves > 0.0]
        for a in sorted(ended, key=lambda a: a.number):
            self._finish(a.number)
        return len(ended)

    def _finish(self, number: int) -> None:
        task = self.program.tasks[number]
        self.end[number] = self.now
        self.busy.discard(task.stream)
        for link in task.links:
            self.moved[link] += task.moves
        for buffer in task.drops:
            if buffer not in self.buffers:
                raise ValueError(
                    f"task {number} ({task.name!r}) frees buffer {buffer!r} before it exists: "
                    "it does not wait for the task that allocates it"
                )
            hold = self.buffers.pop(buffer)
            self.events.append((hold, False))
            self._level(hold.tier, -hold.bytes)

    def _allocate(self, hold: Hold) -> None:
        self.buffers[hold.buffer] = hold
        self.events.append((hold, True))
        self._level(hold.tier, hold.bytes)

    def _level(self, tier: str, change: int) -> None:
        self.used[tier] += change
        self.levels[tier].append((self.now, self.used[tier]))

    # ---- what came of it ------------------------------------------------------------------------------------------
    def _timeline(self) -> Timeline:
        tasks = self.program.tasks
        runs = tuple([Run(task, self.start[i], self.end[i] or 0.0) for i, task in enumerate(tasks)])
        stalls: list[Stall] = []
        for stream, queue in self.queues.items():
            free = 0.0
            for number in queue:
                stalls.extend(self._waits(stream, number, free))
                free = self.end[number] or 0.0
        return Timeline(
            self.program, runs, tuple(stalls), {name: tuple(level) for name, level in self.levels.items()},
            dict(self.moved), dict(self.link_busy), tuple(self.events),
        )  # fmt: skip

    def _waits(self, stream: str, number: int, free: float) -> list[Stall]:
        """Why the stream stood still before a task: the tasks it waited for, in the order they ended; then room."""
        task, found = self.program.tasks[number], []
        since = free
        for other in sorted(task.after, key=lambda i: self.end[i] or 0.0):
            ended = self.end[other] or 0.0
            if ended > since:
                found.append(Stall(stream, number, since, ended, self.program.tasks[other].stream, other))
                since = ended
        if self.start[number] > since:
            tiers = dict.fromkeys(
                hold.tier for hold in task.holds if self.program.tiers[hold.tier].capacity is not None
            )
            cause = "memory: " + "/".join(tiers) if tiers else "order"
            found.append(Stall(stream, number, since, self.start[number], cause, None))
        return found
