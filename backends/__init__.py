"""Backends: one contract (`backends.api`) for everything that can speak as a character."""
