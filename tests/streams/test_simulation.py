"""The event simulation against arithmetic one can do by hand, and against a simulation in small steps of time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.streams import Deadlock, Hold, Link, Program, Task, Tier, simulate
from peakline.streams.sharing import fair_rates

GB = 10**9


def program(*tasks, links=(), tiers=(), initial=()):
    return Program({x.name: x for x in links}, {x.name: x for x in tiers}, list(tasks), list(initial))


def test_a_stream_runs_its_tasks_one_after_the_other_and_streams_run_side_by_side():
    done = simulate(program(Task("a", "x", 2.0), Task("b", "x", 3.0), Task("c", "y", 4.0)))
    assert [(r.start, r.end) for r in done.runs] == [(0, 2), (2, 5), (0, 4)]
    assert done.makespan == 5
    assert done.use("y") == 0.8


def test_a_copy_takes_latency_and_bytes_over_bandwidth():
    copy = Task("copy", "in", moves=8 * GB, links=("pcie",))
    assert simulate(program(copy, links=[Link("pcie", 16 * GB, 1e-3)])).makespan == pytest.approx(0.501)


def test_two_copies_on_one_link_share_it_and_the_longer_one_then_has_it_alone():
    links = [Link("dram", 10 * GB)]
    tasks = [Task("short", "in", moves=5 * GB, links=("dram",)), Task("long", "out", moves=10 * GB, links=("dram",))]
    done = simulate(program(*tasks, links=links))
    assert [r.end for r in done.runs] == pytest.approx([1.0, 1.5])
    assert done.moved == {"dram": 15 * GB}
    assert done.link_busy["dram"] == pytest.approx(1.5)


def test_a_copy_over_two_links_leaves_the_rest_of_the_wide_one_to_others():
    assert fair_rates([("pcie", "dram"), ("dram",)], {"pcie": 2.0, "dram": 10.0}) == [2.0, 8.0]


@given(
    st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True), min_size=1, max_size=8),
    st.fixed_dictionaries({x: st.floats(0.5, 50) for x in "abcd"}),
)
def test_fair_rates_fill_no_link_beyond_its_bandwidth_and_leave_no_copy_able_to_go_faster(copies, bandwidth):
    rates = fair_rates(copies, bandwidth)
    load = {x: sum(r for r, links in zip(rates, copies) if x in links) for x in bandwidth}
    assert all(load[x] <= bandwidth[x] * (1 + 1e-9) for x in bandwidth)
    for rate, links in zip(rates, copies):  # each copy has a full link on which nobody is faster
        assert any(
            load[x] >= bandwidth[x] * (1 - 1e-9)
            and all(other <= rate * (1 + 1e-9) for other, route in zip(rates, copies) if x in route)
            for x in links
        )


def test_an_operator_waits_for_its_operand_and_the_stall_names_the_stream_it_waited_for():
    tasks = [Task("fetch", "in", moves=GB, links=("pcie",)), Task("use", "compute", 1.0, after=(0,))]
    done = simulate(program(*tasks, links=[Link("pcie", GB)]))
    assert done.runs[1].start == pytest.approx(1.0)
    assert done.stalled("compute") == {"in": pytest.approx(1.0)}


def test_an_allocation_waits_for_room_and_the_stall_names_the_tier():
    tasks = [
        Task("make", "compute", 1.0, holds=(Hold("a", "hbm", 6),)),
        Task("out", "out", moves=2 * GB, links=("pcie",), after=(0,), drops=("a",)),
        Task("next", "compute", 1.0, holds=(Hold("b", "hbm", 6),)),
    ]
    done = simulate(program(*tasks, links=[Link("pcie", GB)], tiers=[Tier("hbm", 10)]))
    assert done.runs[2].start == pytest.approx(3.0)
    assert done.stalled("compute") == {"memory: hbm": pytest.approx(2.0)}
    assert done.peak("hbm") == 6
    assert done.memory_at("hbm", 0.5) == 6


def test_what_never_fits_is_refused_with_the_bytes_that_are_missing():
    tasks = [Task("big", "compute", 1.0, holds=(Hold("a", "hbm", 12),))]
    with pytest.raises(Deadlock, match=r"'big'.*needs 12 bytes in hbm, where 10 are free.*2 bytes short"):
        simulate(program(*tasks, tiers=[Tier("hbm", 10)]))


def test_a_prefetch_may_not_take_the_room_an_earlier_task_waits_for():
    first = Task("first", "compute", 1.0, holds=(Hold("a", "hbm", 6),), drops=("a",))
    second = Task("second", "rival", 1.0, holds=(Hold("b", "hbm", 10),), drops=("b",))
    prefetch = Task("prefetch", "in", 1.0, holds=(Hold("c", "hbm", 4),))
    done = simulate(program(first, second, prefetch, tiers=[Tier("hbm", 10)]))
    assert [r.start for r in done.runs] == [0, 1, 2]


def test_a_prefetch_issued_too_early_starves_what_it_is_meant_to_serve():
    prefetch = Task("prefetch", "in", 1.0, holds=(Hold("c", "hbm", 4),))
    use = Task("use", "compute", 1.0, after=(0,), holds=(Hold("b", "hbm", 10),), drops=("b", "c"))
    with pytest.raises(Deadlock, match=r"'use'.*4 bytes short"):
        simulate(program(prefetch, use, tiers=[Tier("hbm", 10)]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("t", "s", moves=1, links=("nvlink",)), "link 'nvlink' is unknown; known: pcie"),
        (Task("t", "s", holds=(Hold("x", "cxl", 1),)), "tier 'cxl' is unknown; known: hbm"),
        (Task("t", "s", after=(3,)), "waits for task 3; accepted: one issued before it"),
        (Task("t", "s", drops=("x",)), "frees buffer 'x', which does not exist"),
        (Task("t", "s", moves=5), "moves 5 bytes over no link"),
        (Task("t", "s", seconds=-1.0), "must not be negative"),
    ],
)
def test_a_program_that_means_nothing_is_refused(task, message):
    with pytest.raises(ValueError, match=message):
        simulate(program(task, links=[Link("pcie", 1.0)], tiers=[Tier("hbm")]))


# ---- against small steps of time -----------------------------------------------------------------------------------
TICK = 1.0


def in_small_steps(given_program):
    """Ends of all tasks when time goes in ticks; durations are whole ticks and no links are shared."""
    tasks = given_program.tasks
    queues = {}
    for i, task in enumerate(tasks):
        queues.setdefault(task.stream, []).append(i)
    used = {t.name: t.held for t in given_program.tiers.values()}
    end, running, now, sizes = {}, {}, 0.0, {}
    while len(end) < len(tasks):
        again = True
        while again:
            again = False
            for i in [i for i, until in running.items() if until <= now]:
                del running[i]
                end[i] = now
                again = True
                for buffer in tasks[i].drops:
                    tier, size = sizes.pop(buffer)
                    used[tier] -= size
            promised = set()
            for i, task in enumerate(tasks):
                queue = queues[task.stream]
                if i in end or i in running or any(j not in end for j in (*queue[: queue.index(i)], *task.after)):
                    continue
                short = [
                    h.tier
                    for h in task.holds
                    if used[h.tier] + sum(x.bytes for x in task.holds if x.tier == h.tier)
                    > (given_program.tiers[h.tier].capacity or 1e18)
                ]
                if short:
                    promised.add(short[0])
                elif not any(h.tier in promised for h in task.holds):
                    running[i] = now + task.seconds
                    again = True
                    for h in task.holds:
                        used[h.tier] += h.bytes
                        sizes[h.buffer] = (h.tier, h.bytes)
        if not running and len(end) < len(tasks):
            return None
        now += TICK
    return [end[i] for i in range(len(tasks))]


@st.composite
def programs(draw):
    tiers = [Tier("hbm", draw(st.integers(8, 20)))]
    tasks, alive = [], []
    for i in range(draw(st.integers(1, 12))):
        after = tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=2)))) if i else ()
        holds = (Hold(f"b{i}", "hbm", draw(st.integers(1, 6))),) if draw(st.booleans()) else ()
        drops = ()
        if alive and draw(st.booleans()):
            maker = draw(st.sampled_from(alive))
            alive.remove(maker)
            drops, after = (f"b{maker}",), tuple(sorted({*after, maker}))
        if holds:
            alive.append(i)
        tasks.append(
            Task(f"t{i}", draw(st.sampled_from("xyz")), float(draw(st.integers(0, 4))), 0, (), after, holds, drops)
        )
    return program(*tasks, tiers=tiers)


@settings(max_examples=300, deadline=None)
@given(programs())
def test_events_and_small_steps_agree_on_every_end(given_program):
    expected = in_small_steps(given_program)
    if expected is None:
        with pytest.raises(Deadlock):
            simulate(given_program)
    else:
        done = simulate(given_program)
        assert [r.end for r in done.runs] == expected
        assert done.peak("hbm") <= given_program.tiers["hbm"].capacity


@settings(max_examples=100, deadline=None)
@given(programs())
def test_a_stream_is_busy_or_stalled_until_its_last_task_ends(given_program):
    try:
        done = simulate(given_program)
    except Deadlock:
        return
    for stream in done.streams:
        last = max(r.end for r in done.runs if r.task.stream == stream)
        assert done.busy(stream) + sum(done.stalled(stream).values()) == pytest.approx(last)
