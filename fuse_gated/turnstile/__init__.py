"""One mounted session: gate, wire and tree put together. What it decides comes out as effects, in the order in which an edge
must carry them out."""

from fuse_gated.turnstile.effects import Answer, Close, Effect, InvalidateEntry, InvalidateInode, Send, Tell
from fuse_gated.turnstile.turnstile import Limits, Turnstile

__all__ = ["Answer", "Close", "Effect", "InvalidateEntry", "InvalidateInode", "Limits", "Send", "Tell", "Turnstile"]
