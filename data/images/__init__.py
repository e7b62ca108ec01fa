"""Turns an image file's bytes into pixels."""
