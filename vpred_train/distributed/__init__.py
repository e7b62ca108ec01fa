"""Collectives between ranks, and the division of the flat parameter space among them."""
