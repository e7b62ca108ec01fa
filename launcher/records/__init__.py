"""Reads and writes what ranks and launchers leave in the run directory."""
