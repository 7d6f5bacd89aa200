"""Memory: event streams, and the allocators that serve them."""
