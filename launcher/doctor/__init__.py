"""Starts all ranks as a run would, has each try what training needs, and reports what is wrong with which machine."""
