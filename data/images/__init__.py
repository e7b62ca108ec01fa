"""An image file's bytes to pixels."""
