"""Personas: characters read from cards, and the prompts made from them."""
