"""Training and sampling of Stable Diffusion 2.x with the v-prediction objective; the only MindSpore code."""
