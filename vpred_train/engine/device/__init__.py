"""The device engine: gradients, optimiser and averages stay on the accelerator, and one graph makes a step of them."""
