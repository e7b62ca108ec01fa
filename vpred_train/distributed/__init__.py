"""How ranks talk, and who owns which range of the flat parameter space."""
