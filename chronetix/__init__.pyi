from chronetix.nodeworker.api.codec import Encoded
from chronetix.nodeworker.api.context import Context
from chronetix.nodeworker.api.errors import RequestFailed
from chronetix.nodeworker.api.message import Message
from chronetix.nodeworker.process.attach import attach
from chronetix.nodeworker.process.worker import serve
from chronetix.protocol.messages import Port, Tick
from chronetix.shm import Frame, RouteClosed, WouldBlock

__all__ = ["Context", "Encoded", "Frame", "Message", "Port", "RequestFailed", "RouteClosed", "Tick", "WouldBlock"]
__all__ += ["attach", "serve"]
