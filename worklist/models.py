"""The worklist as a read model: one row a scheduled step, keys to match and its answer already encoded."""
