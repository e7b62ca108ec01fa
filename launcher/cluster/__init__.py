"""Defines the cluster file: hosts, devices, and how ranks are started and watched."""
