"""Observers of the loop: they see plain numbers and decide nothing."""
