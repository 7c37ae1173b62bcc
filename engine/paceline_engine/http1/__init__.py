"""HTTP/1.1 as asyncio protocols with llhttp on both sides: the data plane, without any policy.

`serve` gives whole requests to a synchronous handler, `ClientPool` sends requests over kept-alive connections to one
server, `EventSplitter` cuts server-sent events. No task is made per request; a task is made per connection opened.
"""

from .call import Call, ClientError, ErrorKind, ResponseListener
from .client import ClientPool, Response, fetch
from .exchange import Exchange
from .request_reader import Limits
from .server import Handler, Server, serve
from .sse import EventSplitter, EventTooLargeError
from .wire import HOP_BY_HOP, Header, Refusal, find_header

__all__ = [
    "HOP_BY_HOP",
    "Call",
    "ClientError",
    "ClientPool",
    "ErrorKind",
    "EventSplitter",
    "EventTooLargeError",
    "Exchange",
    "Handler",
    "Header",
    "Limits",
    "Refusal",
    "Response",
    "ResponseListener",
    "Server",
    "fetch",
    "find_header",
    "serve",
]
