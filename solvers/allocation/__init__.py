"""Placing buffers with lifetimes in one arena."""
