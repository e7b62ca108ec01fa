"""Starts and supervises ranks from a cluster file and a recipe. It imports neither mindspore nor numpy."""
