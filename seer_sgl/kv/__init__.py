"""The global KV pool that lets a chunk continue on any engine."""
