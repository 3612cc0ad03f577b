"""The programs: fuse-gated, fuse-gate and fuse-gatectl."""
