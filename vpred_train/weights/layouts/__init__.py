"""Maps tensors to their names in the layouts of MindONE, Stability and diffusers."""
