"""Captioned images behind one protocol, whatever they lie in."""
