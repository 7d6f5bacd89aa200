"""Fixtures of the command line's tests."""

from cli_command import run

__all__ = ["run"]
