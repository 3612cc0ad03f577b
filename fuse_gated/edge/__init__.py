"""The thin edges: everything that touches the kernel, a socket or a file."""
