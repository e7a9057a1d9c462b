"""KV store: prefixes of attention keys and values that outlive the turn and the process."""
