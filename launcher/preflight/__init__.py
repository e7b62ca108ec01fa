"""Looking for what would make a launch fail, on this host and all others."""
