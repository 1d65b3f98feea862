"""Feast definitions and the table contract: declarations only."""
