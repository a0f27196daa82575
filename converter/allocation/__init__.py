"""Who gets how many ranks: one policy per file, each producing a rank plan."""
