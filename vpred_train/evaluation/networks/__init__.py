"""Networks whose features are compared, in MindSpore, and the readers of their published weights."""
