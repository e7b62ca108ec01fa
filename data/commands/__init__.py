"""Holds the commands of vpred-data that need no neural network."""
