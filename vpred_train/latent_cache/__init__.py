"""Computes latents and text features once, and finds which of them a recipe needs."""
