"""PyTorch's caching allocator written to be obviously right, for the tests alone.

Every segment is a plain list of blocks in address order, and every question is answered by looking at all of them.
Nothing is shared with the replay but the stream of events; sizes are written out, and rounding is spelt anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

KIB, MIB = 1 << 10, 1 << 20


@dataclass
class Block:
    address: int
    size: int
    state: str = "free"  # "free", "used", "waiting" (for another stream) or "unmapped"
    born: int = 0


@dataclass
class Segment:
    stream: int
    small: bool
    page: int  # 0: not expandable
    blocks: list[Block] = field(default_factory=list)

    def merge(self) -> None:
        """Join neighbours that are both free or both unmapped."""
        joined: list[Block] = []
        for block in self.blocks:
            last = joined[-1] if joined else None
            if last and last.state == block.state and block.state in ("free", "unmapped"):
                last.size += block.size
                last.born = max(last.born, block.born)
            else:
                joined.append(block)
        self.blocks = joined


class ReferenceAllocator:
    def __init__(self, options, capacity=None, device_total=None):
        self.o = options
        self.capacity = capacity
        self.total = capacity if device_total is None else device_total
        fraction = options.memory_fraction
        self.limit = None if fraction in (None, 1) else int(fraction * float(self.total))
        self.collects = self.limit is not None and options.garbage_collection_threshold > 0
        self.segments: list[Segment] = []
        self.next_address = 0x7F0000000000
        self.searches = 0
        self.retries = 0

    # ---- sums

    def bytes(self, *states):
        return sum(b.size for s in self.segments for b in s.blocks if b.state in states)

    @property
    def reserved(self):
        return self.bytes("free", "used", "waiting")

    # ---- sizes

    def round(self, size):
        if size < 512:
            return 512
        interval = 0
        while interval < 15 and size >= MIB << (interval + 1):
            interval += 1
        parts = self.o.roundup_power2_divisions[interval]
        if parts > 1 and size > 512 * parts:
            floor = 1
            while floor * 2 <= size:
                floor *= 2
            rounded = floor
            while rounded < size:
                rounded += floor // parts
            return rounded
        while size % 512:
            size += 1
        return size

    def segment_size(self, size):
        if size <= MIB:
            return 2 * MIB
        if size < 10 * MIB:
            return self.o.large_segment_size
        return (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)

    def new_address(self, size, alignment):
        while self.next_address % alignment:
            self.next_address += MIB
        start = self.next_address
        self.next_address += (size + 2 * MIB - 1) // (2 * MIB) * (2 * MIB) + 2 * MIB
        return start

    # ---- allocation

    def malloc(self, size, stream):
        small = size <= MIB
        found = self.find(size, stream, small)
        if found is None:
            if self.collects:
                self.collect()
            found = self.ask(size, stream, small)
            if found is None and self.release_oversize(size, stream, small):
                found = self.ask(size, stream, small)
            if found is None:
                self.release_cached()
                self.retries += 1
                found = self.ask(size, stream, small)
            if found is None:
                return None
        segment, block = found
        rest = block.size - size
        limit = self.o.max_split_size
        if small or self.o.expandable_segments:
            split = rest >= 512
        else:
            split = rest > MIB and (limit is None or size < limit)
        if split:
            at = segment.blocks.index(block)
            tail = Block(block.address + size, rest, "free", self.searches)
            segment.blocks.insert(at + 1, tail)
            block.size = size
        block.state = "used"
        return block

    def find(self, size, stream, small):
        if self.collects and not small:
            self.searches += 1
        fits = []
        for s in self.segments:
            if (s.stream, s.small) == (stream, small):
                for position, b in enumerate(s.blocks):
                    after = s.blocks[position + 1] if position + 1 < len(s.blocks) else None
                    reach = b.size + (after.size if after and after.state == "unmapped" else 0)
                    if b.state == "free" and b.size >= size:
                        fits.append((b.size, b.address, reach, s, b))
        fits.sort(key=lambda fit: fit[:2])
        if not fits:
            return None
        at = 0
        if self.o.expandable_segments:
            while at + 1 < len(fits) and fits[at + 1][2] < fits[at][2]:
                at += 1
        block = fits[at][4]
        limit = self.o.max_split_size
        if limit is not None:
            slack = self.o.max_non_split_rounding or self.o.large_segment_size
            if size < limit <= block.size or (size >= limit and block.size >= size + slack):
                return None
        return fits[at][3], block

    def ask(self, size, stream, small):
        wanted = self.segment_size(size)
        if self.limit is not None and self.reserved + wanted > self.limit:
            return None
        if self.o.expandable_segments:
            return self.expand(size, stream, small)
        if self.capacity is not None and self.reserved + wanted > self.capacity:
            return None
        block = Block(self.new_address(wanted, 2 * MIB), wanted)
        segment = Segment(stream, small, 0, [block])
        self.segments.append(segment)
        return segment, block

    def expand(self, size, stream, small):
        candidates = []
        for s in self.segments:
            if (s.stream, s.small) != (stream, small):
                continue
            for position, b in enumerate(s.blocks):
                if b.state != "unmapped":
                    continue
                first = position - 1 if position and s.blocks[position - 1].state == "free" else position
                room, at = 0, first
                while at < len(s.blocks) and s.blocks[at].state in ("free", "unmapped") and room < size:
                    room += s.blocks[at].size
                    at += 1
                if room >= size:
                    candidates.append((s.blocks[first].address, s))
        if candidates:
            start, segment = min(candidates, key=lambda c: c[0])
        else:
            page = 2 * MIB if small else self.o.large_segment_size
            space = self.total + self.total // 8
            space = (space + page - 1) // page * page
            if space < size:
                return None
            start = self.new_address(space, page)
            segment = Segment(stream, small, page, [Block(start, space, "unmapped")])
            self.segments.append(segment)
        while True:  # map the next hole until the free block at `start` is large enough
            block = next(b for b in segment.blocks if b.address == start)
            if block.state == "free" and block.size >= size:
                return segment, block
            have = block.size if block.state == "free" else 0
            hole = next(b for b in segment.blocks if b.address == start + have)
            pages = -(-min(size - have, hole.size) // segment.page)
            if self.capacity is not None and self.reserved + pages * segment.page > self.capacity:
                return None
            at = segment.blocks.index(hole)
            mapped = Block(hole.address, pages * segment.page, "free", self.searches)
            left = Block(hole.address + mapped.size, hole.size - mapped.size, "unmapped")
            segment.blocks[at : at + 1] = [mapped, left] if left.size else [mapped]
            segment.merge()

    # ---- freeing

    def segment_of(self, block):
        return next(s for s in self.segments if any(b is block for b in s.blocks))

    def free(self, block):
        block.state = "free"
        block.born = self.searches
        self.segment_of(block).merge()

    def defer(self, block):
        block.state = "waiting"

    def whole(self, small=None):
        """Unsplit free blocks that are not expandable, with their segments."""
        return [
            s
            for s in self.segments
            if not s.page and len(s.blocks) == 1 and s.blocks[0].state == "free" and small in (None, s.small)
        ]

    def collect(self):
        excess = self.reserved - int(self.o.garbage_collection_threshold * float(self.limit))
        reclaimed = 0
        while excess > 0 and reclaimed < excess:
            segments = self.whole(small=False)
            if not segments:
                return
            age = {id(s): self.searches - s.blocks[0].born for s in segments}
            average = sum(age.values()) / len(age)
            old = [s for s in segments if age[id(s)] >= average]
            if not old:
                return
            for s in old:
                reclaimed += s.blocks[0].size
                self.segments.remove(s)

    def release_oversize(self, size, stream, small):
        limit = self.o.max_split_size
        if limit is None or self.o.expandable_segments:
            return False
        wanted = max(size, limit)
        mine = [s for s in self.whole(small) if s.stream == stream]
        mine.sort(key=lambda s: (s.blocks[0].size, s.blocks[0].address))
        for s in mine:
            if s.blocks[0].size >= wanted:
                self.segments.remove(s)
                return True
        released = 0
        for s in reversed(mine):
            if released >= wanted or s.blocks[0].size < limit:
                break
            released += s.blocks[0].size
            self.segments.remove(s)
        return released >= wanted

    def release_cached(self):
        for s in self.segments:
            for b in s.blocks:
                if b.state == "waiting":
                    b.state, b.born = "free", self.searches
            s.merge()
        for s in self.whole():
            self.segments.remove(s)
        for s in list(self.segments):
            if not s.page:
                continue
            base = s.blocks[0].address
            unmapped = False
            for b in list(s.blocks):
                if b.state != "free":
                    continue
                first = base + -(-(b.address - base) // s.page) * s.page
                last = base + (b.address + b.size - base) // s.page * s.page
                if first >= last:
                    continue
                pieces = [Block(b.address, first - b.address), Block(first, last - first, "unmapped")]
                pieces.append(Block(last, b.address + b.size - last))
                at = s.blocks.index(b)
                s.blocks[at : at + 1] = [piece for piece in pieces if piece.size]
                unmapped = True
            s.merge()
            if unmapped and len(s.blocks) == 1:  # a reservation whose first mapping was refused stays
                self.segments.remove(s)

    # ---- a whole stream

    def run(self, events):
        """Addresses and sizes by block, (allocated, active, reserved) after each event, and the event of the OOM."""
        blocks: dict[int, Block] = {}
        where: dict[int, tuple[int, int]] = {}
        course = []
        completions = list(events.completions)
        deferred = set(events.deferred)
        for event, op in enumerate(events.ops):
            for at, number in completions:
                if at == event and blocks[number].state == "waiting":
                    self.free(blocks[number])
            if op >= 0:
                block = self.malloc(self.round(events.sizes[op]), events.streams[op])
                if block is None:
                    return where, course, event
                blocks[op] = block
                where[op] = (block.address, block.size)
            elif event in deferred:
                self.defer(blocks[~op])
            else:
                self.free(blocks[~op])
            self.check()
            course.append((self.bytes("used"), self.bytes("used", "waiting"), self.reserved))
        return where, course, None

    def check(self):
        """Blocks tile their segments without gap or overlap."""
        for s in self.segments:
            for one, next_one in zip(s.blocks, s.blocks[1:]):
                assert one.address + one.size == next_one.address
        assert self.capacity is None or self.reserved <= self.capacity
