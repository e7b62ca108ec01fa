"""Is the first process of each pod of a run on Kubernetes."""
