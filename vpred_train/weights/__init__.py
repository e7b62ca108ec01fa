"""Stable Diffusion 2 weights in the layouts of MindONE, Stability and diffusers. No MindSpore, no torch, no pickle."""
