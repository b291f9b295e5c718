"""What the status of a resource should say: pure decisions over what was seen. Times and what was said before are passed in."""
