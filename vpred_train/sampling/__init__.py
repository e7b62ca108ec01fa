"""Turns prompts into images."""
