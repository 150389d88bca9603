"""Ordinary Lightning code, as its documentation shows it: what a user adds to a project."""
