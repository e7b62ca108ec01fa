"""Watches one attempt while it runs and judges it when it has ended."""
