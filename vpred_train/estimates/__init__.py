"""Memory and operations of a recipe, from shapes alone. No MindSpore."""
