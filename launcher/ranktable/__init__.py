"""Handles HCCL rank tables, which say for Ascend's collectives which device is which rank."""
