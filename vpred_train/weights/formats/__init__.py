"""Reads and writes containers of tensors: safetensors, MindSpore .ckpt, PyTorch pickles."""
