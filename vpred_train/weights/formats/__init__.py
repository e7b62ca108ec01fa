"""Containers of tensors: safetensors, MindSpore .ckpt, PyTorch pickles."""
