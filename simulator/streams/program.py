"""What is simulated: tasks on streams, the links they load, and the memory they hold.

A *stream* runs its tasks one after the other, in the order they were issued, as a CUDA stream does. A *task* is an
operator on the compute stream or a copy on the stream of its direction. It waits for the tasks it names and for room in
the tiers where it allocates. A *link* carries the bytes of all copies on it at its bandwidth, shared fairly; a copy may
load several (PCIe and the host's DRAM), and goes as fast as the most crowded one lets it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Hold", "Link", "Program", "Task", "Tier"]


@dataclass(frozen=True, slots=True)
class Link:
    """Something that carries bytes: one direction of PCIe or NVLink, a drive's reads or writes, a DRAM's bandwidth.

    Attributes:
        name: unique in the program.
        bandwidth: bytes/s over all copies together.
        latency: seconds before the first byte of a copy that uses it arrives; a copy over several pays the sum.
    """

    name: str
    bandwidth: float
    latency: float = 0.0


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory: device, pinned host memory, a drive.

    Attributes:
        name: unique in the program.
        capacity: bytes, None if it need not be bounded.
        held: bytes that stay occupied throughout (what the program does not move).
    """

    name: str
    capacity: int | None = None
    held: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A buffer that comes into being: its name, its tier and its bytes."""

    buffer: str
    tier: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        name: for people.
        stream: where it is issued.
        seconds: how long it computes (besides what it moves).
        moves: bytes carried over each of `links`.
        links: names of the links that its bytes load.
        after: numbers of the tasks that must have ended before it starts.
        holds: buffers allocated when it starts.
        drops: buffers freed when it ends.
        kind: what it is counted as (`forward`, `backward`, `optimizer`, `recompute`, `offload`, `fetch`).
    """

    name: str
    stream: str
    seconds: float = 0.0
    moves: int = 0
    links: tuple[str, ...] = ()
    after: tuple[int, ...] = ()
    holds: tuple[Hold, ...] = ()
    drops: tuple[str, ...] = ()
    kind: str = ""


@dataclass
class Program:
    """Tasks by number, in the order in which they were issued, with the links and tiers they use.

    Attributes:
        initial: buffers that exist before the first task.
    """

    links: dict[str, Link] = field(default_factory=dict)
    tiers: dict[str, Tier] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    initial: list[Hold] = field(default_factory=list)

    def add(self, task: Task) -> int:
        """Issue a task; its number is what others wait for."""
        self.tasks.append(task)
        return len(self.tasks) - 1

    def check(self) -> None:
        """Refuse a program that means nothing.

        Raises:
            ValueError: naming the task and the link, tier, buffer or number at fault.
        """
        for link in self.links.values():
            if not link.bandwidth > 0:
                raise ValueError(f"link {link.name!r}: bandwidth is {link.bandwidth!r}; accepted: bytes/s above 0")
        held = {hold.buffer for hold in self.initial}
        for hold in self.initial:
            _known(hold.tier, self.tiers, f"buffer {hold.buffer!r}", "tier")
        for number, task in enumerate(self.tasks):
            where = f"task {number} ({task.name!r})"
            for name in task.links:
                _known(name, self.links, where, "link")
            if task.moves and not task.links:
                raise ValueError(f"{where} moves {task.moves} bytes over no link")
            if task.seconds < 0 or task.moves < 0:
                raise ValueError(f"{where}: seconds and bytes must not be negative")
            for other in task.after:
                if not 0 <= other < number:
                    raise ValueError(f"{where} waits for task {other}; accepted: one issued before it")
            for hold in task.holds:
                _known(hold.tier, self.tiers, where, "tier")
                if hold.buffer in held:
                    raise ValueError(f"{where} allocates buffer {hold.buffer!r}, which exists already")
                held.add(hold.buffer)
            for buffer in task.drops:
                if buffer not in held:
                    raise ValueError(f"{where} frees buffer {buffer!r}, which does not exist")
                held.remove(buffer)


def _known(name: str, known: dict[str, Link] | dict[str, Tier], where: str, what: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: {what} {name!r} is unknown; known: {', '.join(known) or 'none'}")
