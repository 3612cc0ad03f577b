"""The wire, version 1: what server and client say to each other (docs/api/websocket-protocol.md)."""
