"""fuse-gated: a remote client's directory as a real mount, with every file operation passing a gate."""

__version__ = "0.1.0"
