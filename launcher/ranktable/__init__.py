"""HCCL rank tables: which device is which rank, for Ascend's collectives."""
