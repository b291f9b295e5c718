"""One level-triggered function per kind: reads the world, computes, applies, writes the status. No step depends on an earlier run."""
