"""Provides optional compiled operations for CPU."""
