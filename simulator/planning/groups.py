"""What is executed again together: groups of operators, the segments they belong to, and what these read."""

from __future__ import annotations

from peakline.planning.moments import Moments
from peakline.planning.profiles import Profile
from peakline.solvers.offload.problem import Group, Passing, Segment

__all__ = ["Groups"]


class Groups:
    """Groups of the forward pass: storages that are made by the same operators, and what these read."""

    def __init__(self, profile: Profile, saved: dict[int, tuple[int, int]]) -> None:
        self.profile, self.saved = profile, saved
        self.of: dict[int, int] = {}
        self.steps: list[tuple[int, ...]] = []
        self.segment_of: list[int] = []
        self.segments: list[int] = []
        self.start: dict[int, int] = {}
        self.reads: list[set[int]] = []
        self.boundary: list[int] = []
        self.needed: dict[int, int] = {}
        self.until: dict[int, int] = {}
        self.longer: dict[int, tuple[int, int]] = {}
        self._segments()
        self._collect()
        self._borders()

    def _segments(self) -> None:
        """Pieces of the forward pass in which something saved is made; each starts again before its first use."""
        first: dict[int, int] = {}
        for key, (_, use) in self.saved.items():
            piece = self.profile.piece_of[self.profile.program.births[key]]
            first[piece] = min(first.get(piece, use), use)
        self.segments = sorted(first)
        self.start = {i: first[piece] for i, piece in enumerate(self.segments)}

    def _collect(self) -> None:
        """One group per storage made in a segment; storages with an operator in common share it."""
        profile, number = self.profile, {piece: i for i, piece in enumerate(self.segments)}
        owner: dict[int, int] = {}
        members: dict[int, set[int]] = {}
        for key, made in profile.makers.items():
            if profile.program.births[key] < 0:
                continue  # something resident that the forward pass writes (running statistics)
            pieces = {profile.piece_of[i] for i in made}
            if len(pieces) != 1 or not pieces <= number.keys():
                continue
            joined = {owner[i] for i in made if i in owner}
            head = min(joined, default=key)
            group = members.setdefault(head, set())
            for other in joined - {head}:
                group |= members.pop(other)
            group.add(key)
            for j in [j for k in group for j in profile.makers[k]]:
                owner[j] = head
        for storages in members.values():
            steps = tuple(sorted({i for key in storages for i in profile.makers[key]}))
            if self._overwritten(steps, storages):
                continue
            index = len(self.steps)
            for key in storages:
                self.of[key] = index
            self.steps.append(steps)
            self.segment_of.append(number[profile.piece_of[steps[0]]])
            read = {key for i in steps for key in profile.steps[i].touches} - storages
            self.reads.append({key for key in read if profile.program.births[key] >= 0})

    def _overwritten(self, steps: tuple[int, ...], storages: set[int]) -> bool:
        """Whether the group reads what somebody writes over later: executed again, it would read the new value."""
        makers = self.profile.makers
        return any(
            makers.get(key, [i])[-1] > i for i in steps for key in self.profile.steps[i].touches if key not in storages
        )

    def _borders(self) -> None:
        """Storages that a segment would need and that it does not make: needed from, and until, which steps.

        What is saved may have to be there for longer than it is: until the last segment that reads it has run again.
        """
        for index, read in enumerate(self.reads):
            start = self.start[self.segment_of[index]]
            for key in read:
                mine = key in self.of and self.segment_of[self.of[key]] == self.segment_of[index]
                if mine:
                    continue
                self.needed[key] = min(self.needed.get(key, start), start)
                self.until[key] = max(self.until.get(key, start), start)
                if self._outlived(key, start):
                    first, last = self.longer.get(key, (start, start))
                    self.longer[key] = min(first, start), max(last, start)
        self.boundary = [key for key in self.needed if key not in self.saved]
        anybody: set[int] = set().union(*self.reads)
        for key, group in self.of.items():  # what a segment's own groups read must be there when it is made again
            if key in self.saved and key in anybody:
                start = self.start[self.segment_of[group]]
                self.needed[key] = min(self.needed.get(key, start), start)

    def _outlived(self, key: int, start: int) -> bool:
        """Whether a saved storage is gone when a segment starts."""
        return key in self.saved and int(self.profile.program.deaths[key]) < start

    def starts(self) -> dict[int, list[tuple[int, int, int]]]:
        """What is executed again before each step: steps in order, their groups, bytes beside items for sure."""
        found: dict[int, list[tuple[int, int, int]]] = {}
        group_of = {i: group for group, steps in enumerate(self.steps) for i in steps}
        for i in sorted(group_of):
            step = self.profile.steps[i]
            passing = {key for key in (*step.makes, *step.touches) if self._passes(key, group_of[i])}
            inside = sum(int(self.profile.program.sizes[key]) for key in passing) + self._workspace(i)
            found.setdefault(self.start[self.segment_of[group_of[i]]], []).append((i, group_of[i], inside))
        self.lengths = {start: len(steps) for start, steps in found.items()}
        return found

    def length(self, step: int) -> int:
        """Moments that second executions just before a step take."""
        return self.lengths.get(step, 0)

    def _passes(self, key: int, group: int) -> bool:
        """Whether a storage is made again in the group's segment without being anybody's item, and freed there.

        What is saved but too small to be decided on stays, and is made again where it is gone before the segment runs.
        """
        other = self.of.get(key, -1)
        if other < 0 or key in self.saved or self.segment_of[other] != self.segment_of[group]:
            return False
        return int(self.profile.program.deaths[key]) < self.start[self.segment_of[group]]

    def _workspace(self, step: int) -> int:
        program = self.profile.program
        return sum(map(int, program.workspaces.get(id(program.steps[step].operator), ())))

    def problem(
        self, number: dict[int, int], longer: dict[int, int], moments: Moments
    ) -> tuple[tuple[Group, ...], tuple[Segment, ...]]:
        """Groups and segments in the numbers of the problem.

        Args:
            number: item of each storage that is one.
            longer: item of each that would have to be there for longer.
        """
        profile = self.profile
        groups = []
        last: dict[int, int] = {}  # last step of its segment that touches each storage
        for index, steps in enumerate(self.steps):
            for i in steps:
                for key in profile.steps[i].touches:
                    if self.segment_of[self.of.get(key, index)] == self.segment_of[index]:
                        last[key] = max(last.get(key, i), i)
        for index, (steps, read) in enumerate(zip(self.steps, self.reads)):
            segment = self.segment_of[index]
            own = {k for k in read if k not in self.saved and k in self.of and self.segment_of[self.of[k]] == segment}
            inner = {self.of[k] for k in own}  # made again there, whether or not it is kept for others
            later = {longer[k] for k in read if k in longer and self._outlived(k, self.start[segment])}
            groups.append(
                Group(
                    profile.steps[steps[-1]].name,
                    sum(profile.seconds[i] for i in steps),
                    segment,
                    tuple(sorted({number[k] for k in read - own if k in number} | later)),
                    tuple(sorted(inner - {index})),
                    self._passing(index, moments, last),
                )
            )
        names = {piece: profile.steps[profile.piece_of.index(piece)].name for piece in self.segments}
        segments = tuple([Segment(names[p], profile.slot_of[self.start[i]]) for i, p in enumerate(self.segments)])
        return tuple(groups), segments

    def _passing(self, group: int, moments: Moments, last: dict[int, int]) -> tuple[Passing, ...]:
        """What the group's second execution may hold beside items: until the last of its segment that touches it."""
        found, program = [], self.profile.program
        for i in self.steps[group]:
            here = moments.again[i]
            if self._workspace(i):
                found.append(Passing(self._workspace(i), (here, here)))
            for key in self.profile.steps[i].makes:
                if self._passes(key, group):
                    found.append(Passing(int(program.sizes[key]), (here, moments.again[last.get(key, i)])))
        return tuple(found)
