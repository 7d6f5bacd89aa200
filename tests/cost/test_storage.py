"""Drives and links against figures that others measured, and against what must hold of any."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.cost.links import READ_OVERHEAD, Channel, channel_of, chunked, packet_share, staged
from peakline.cost.storage import Drive, drive_of, near_data
from peakline.hardware import device, devices
from peakline.planning.tiers import surroundings
from peakline.validation.kinds import PINNED, READS


@pytest.mark.parametrize(("drive", "depth", "measured"), READS)
def test_measured_random_reads_lie_between_colliding_and_perfectly_spread_requests(
    drive: Drive, depth: int, measured: float
) -> None:
    colliding, spread = drive.random("read", 4096, depth) / 4096, drive.sequential("read", 4096, depth) / 4096
    assert colliding * 0.95 <= measured <= spread * 1.05
    assert colliding == pytest.approx(measured, rel=0.25)


def test_the_datasheets_random_rate_needs_many_requests_in_flight() -> None:
    drive = drive_of("990-pro")
    assert drive.random("read", 4096, 1) / 4096 == pytest.approx(22e3, rel=0.01)
    assert drive.random("read", 4096, 512) / 4096 > 0.85 * 1.4e6
    assert drive.depth("read", 4096) > 64 > 2 >= drive.depth("read", 16 << 20)


@pytest.mark.parametrize("depth", [1, 32, 4096])
def test_less_than_a_page_at_a_random_place_takes_as_long_as_the_page(depth: int) -> None:
    drive = drive_of("990-pro")
    assert drive.random("read", 512, depth) / 512 == pytest.approx(drive.random("read", 4096, depth) / 4096)
    assert drive.random("read", 5000, depth) / 5000 == pytest.approx(drive.random("read", 8192, depth) / 8192)


@pytest.mark.parametrize(("link", "measured", "source"), PINNED)
def test_pinned_copies_reach_what_headers_leave_but_a_fifth(link: str, measured: float, source: str) -> None:
    raw = device(link).links["lanes"].bandwidth
    assert raw is not None
    most = raw * packet_share(256, READ_OVERHEAD)
    assert 0.8 * most < measured < most


@pytest.mark.parametrize(("link", "measured", "source"), PINNED)
def test_the_catalogues_attained_rates_are_those_measured(link: str, measured: float, source: str) -> None:
    assert channel_of(device(link).links["lanes"]).bandwidth == pytest.approx(measured, rel=0.06)


def test_pageable_copies_are_as_slow_as_the_core_that_stages_them() -> None:
    link, copying = Channel(25e9, 6.5e-6), 11e9
    assert staged(link, copying, 1 << 30) == pytest.approx((1 << 30) / copying, rel=0.01)
    assert staged(Channel(6e9), copying, 1 << 30) == pytest.approx((1 << 30) / 6e9, rel=0.01)


def test_half_of_the_bandwidth_is_reached_at_latency_times_bandwidth() -> None:
    channel = channel_of(device("pcie-4-x16").links["lanes"])
    assert channel.rate(channel.half_size) == pytest.approx(channel.bandwidth / 2)
    assert channel.half_size == pytest.approx(162_500)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.booleans())
def test_both_ways_take_the_longer_or_the_sum(out: float, back: float, half: bool) -> None:
    channel = Channel(1e9, 0.0, half)
    longest, total = max(out, back) / 1e9, (out + back) / 1e9
    assert channel.both_ways(out, back) == pytest.approx(total if half else longest)


@given(st.integers(1, 1 << 24), st.integers(1, 1 << 22))
def test_handing_on_in_chunks_lies_between_the_slowest_link_and_store_and_forward(size: int, chunk: int) -> None:
    links = (Channel(3e9), Channel(7e9), Channel(2e9))
    taken = chunked(links, size, chunk)
    assert size / 2e9 <= taken * (1 + 1e-9)
    whole = -(-size // min(chunk, size)) * min(chunk, size)  # the last chunk counts in full
    assert taken <= sum(whole / link.bandwidth for link in links) * (1 + 1e-9)


@given(st.integers(1, 1 << 22), st.integers(1, 256))
def test_more_requests_in_flight_never_read_slower(request_bytes: int, depth: int) -> None:
    for name in ("p4800x", "p3700", "990-pro"):
        drive = drive_of(name)
        for read in (drive.random, drive.sequential):
            assert read("read", request_bytes, depth) <= read("read", request_bytes, depth + 1) * (1 + 1e-12)


def test_small_random_writes_wear_flash_faster_than_optane() -> None:
    flash, optane = drive_of("p3700").write_amplification, drive_of("p4800x").write_amplification
    assert flash is not None
    assert optane is not None
    assert flash > 5 > optane


def test_endurance_is_that_of_drive_writes_per_day_over_five_years() -> None:
    written = drive_of("p3700").endurance
    assert written == pytest.approx(10 * 800e9 * 365 * 5, rel=0.01)  # both are published
    assert drive_of("p4800x").lifetime(1e9) == pytest.approx(30 * 375e9 * 365 * 5 / 1e9)


def test_computing_drives_add_up_where_the_hosts_link_does_not() -> None:
    drive = drive_of("smartssd")
    gains = [near_data(n, drive, 1e12, 1e9, link=12e9).gain for n in (1, 4, 16)]
    assert gains[0] == pytest.approx(1.0, rel=0.01)
    assert gains[2] == pytest.approx(16 * 3.3 / 12, rel=0.02)


def test_bytes_of_a_drive_do_not_load_the_hosts_memory_with_gpudirect() -> None:
    gpu = device("a100-80gb")
    bounced, direct = (surroundings(gpu, ssd=1 << 40, gpudirect=way).routes[1] for way in (False, True))
    assert "host memory" in bounced.back
    assert "host memory" not in direct.back
    assert bounced.back[-1] == direct.back[-1] == "ssd read"


def test_memory_behind_cxl_is_as_fast_as_its_link() -> None:
    around = surroundings(device("h100-sxm"), host_device="cz120-256gb")
    assert around.host_bandwidth == pytest.approx(31.5e9)
    assert around.tiers[0].back == pytest.approx(31.5e9)


def test_a_half_duplex_host_link_is_one_link_for_both_directions() -> None:
    board = device("a100-80gb", **{"links.host.duplex": "half"})
    around = surroundings(board)
    assert {"host link", "host memory"} == set(around.links)


def test_every_drive_of_the_catalogue_reads() -> None:
    for name in devices("ssd"):
        assert drive_of(name).reading.bandwidth > 1e9


def test_what_is_no_drive_or_not_published_is_said() -> None:
    with pytest.raises(ValueError, match="not a drive"):
        drive_of("a100-80gb")
    with pytest.raises(ValueError, match="read_latency is unknown"):
        drive_of("pm1743").random("read", 4096, 1)
    with pytest.raises(ValueError, match="does not compute"):
        near_data(1, drive_of("pm1743"), 1e9, 1e6, link=1e9)
