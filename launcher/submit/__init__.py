"""Hands runs to a scheduler: renders what it reads, asks it about jobs, and decides what follows a job's end."""
