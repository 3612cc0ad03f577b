"""Configuration: YAML with line numbers -> frozen settings and policy."""
