"""Builds networks with the structure and parameter names of Stable Diffusion 2.x."""
