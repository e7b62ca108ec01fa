"""Computes which sample comes when, as a pure function of the seed and the clock."""
