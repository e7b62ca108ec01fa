"""Which tensor has which name in MindONE, Stability and diffusers."""
