"""Feedback in, whatever tool it comes from; a registered KTO dataset out."""
