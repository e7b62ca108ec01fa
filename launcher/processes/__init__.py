"""Starts programs here and on other hosts, and clears what they leave."""
