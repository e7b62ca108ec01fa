"""Reads captioned images in any storage format through one protocol."""
