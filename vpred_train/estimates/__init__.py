"""Estimates memory and operations of a recipe from shapes alone. Needs no MindSpore."""
