"""The commands of vpred-data that need no network."""
