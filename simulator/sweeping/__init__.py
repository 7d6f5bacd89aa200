"""Sweeps: many configurations at once, on this machine or on many, kept on disk part by part, and searched."""
