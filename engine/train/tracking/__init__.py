"""Where the numbers of a run go: metrics.jsonl always, other backends by choice."""
