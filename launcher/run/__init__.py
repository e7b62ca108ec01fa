"""Runs attempt after attempt, until the run is done or gives up."""
