"""Ranks that die, disks that lose power, and a package without its safeguards."""
