"""What is loaded and kept is moved out of the collector's sight: it would look through all of it again and again."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _kept_out_of_the_collectors_sight() -> None:
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # extension modules take objects that are left at the end for leaks
