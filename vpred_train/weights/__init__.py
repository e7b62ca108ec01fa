"""Reads and writes Stable Diffusion 2 weights in the layouts of MindONE, Stability and diffusers.

It uses no MindSpore, no torch and no pickle.
"""
