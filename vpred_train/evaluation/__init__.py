"""Evaluation: metrics of images and of their agreement with captions, and the networks that they need."""
