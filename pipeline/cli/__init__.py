"""The command line `cvp`."""

from pipeline.cli.app import main

__all__ = ["main"]
