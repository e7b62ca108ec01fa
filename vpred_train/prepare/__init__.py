"""From a recipe file to a resolved configuration and opened data. No MindSpore."""
