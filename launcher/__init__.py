"""Machines and commands: from a cluster file and a recipe to supervised ranks. No mindspore, no numpy."""
