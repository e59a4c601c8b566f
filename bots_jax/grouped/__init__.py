"""The same engine for large pools: one belief for all tasks alike."""
