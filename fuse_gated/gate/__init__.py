"""The gate: the pure code that decides. Policy, sandbox, limiter, admission and audit records; no I/O."""
