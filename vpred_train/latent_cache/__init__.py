"""Latents and text features computed once: what a recipe needs, and making it."""
