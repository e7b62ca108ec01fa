"""Shared by tests of several rooms: real jobs and hosts, small documents, weights and images, programs to start."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = CHECKOUT / "tests"
GOLDEN = TESTS / "golden"
PROGRAMS = TESTS / "support" / "programs"
PYTHONPATH = f"{CHECKOUT}:{TESTS}"
"""For a process that imports this package. The checkout comes first: folders of tests are called like its packages."""
