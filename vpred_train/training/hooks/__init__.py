"""Hooks of the training loop. They see plain numbers and decide nothing."""
