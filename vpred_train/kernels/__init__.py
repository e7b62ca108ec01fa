"""Optional compiled operations for CPU."""
