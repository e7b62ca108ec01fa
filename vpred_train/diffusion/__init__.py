"""Implements the mathematics: schedule, parameterization, objective, samplers. Pure functions cite their equation."""
