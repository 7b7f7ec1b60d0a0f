"""Pseudo-events: where the content of a video changes, from the features of its clips."""
