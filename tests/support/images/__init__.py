"""Small images of every format, folders of them, and damaged ones."""
