"""The loop while somebody waits: driven without blocking, within a time limit, over models that live elsewhere."""
