"""Fixtures of the recorder's tests."""

from cli_command import run

__all__ = ["run"]
