"""Files of a checkpoint: names, bytes, digests, manifest."""
