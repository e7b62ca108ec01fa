"""The mathematics: schedule, parameterization, objective, samplers. Pure functions that cite their equation."""
