"""Defines samplers as plain functions, and the timesteps that they visit."""
