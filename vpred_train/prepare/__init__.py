"""Turns a recipe file into a resolved configuration and opened data. Needs no MindSpore."""
