"""What a mount knows of its tree: nodes, handles, and (in time) a cache."""
