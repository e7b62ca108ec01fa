"""Runs training steps on the state that they change. Two engines, on the host and on the device, share one protocol."""
