"""The training document, section by section. No MindSpore."""
