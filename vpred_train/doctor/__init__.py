"""Tries on one rank what training needs of its machine; `vpred-launch doctor` starts it on all ranks."""
