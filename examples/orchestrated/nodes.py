"""The two nodes that the orchestrator's output names as WebAssembly components, in Python."""


class HttpClient:
    """Asks on every tick, from the address that netinfo has told, and sends what it would send to a server."""

    def __init__(self):
        self.address = None
        self.count = 0

    def on_message(self, message, ctx):
        if message.topic == "control/resource/netinfo":
            self.address = message.value()["ip"]
        elif self.address is not None:
            self.count += 1
            ctx.send({"request": self.count, "from": self.address, "tick": message.value()["sequence"]})


class Collector:
    """Prints what arrives."""

    def on_frame(self, frame, ctx):
        request = frame.value()
        print(f"request {request['request']} from {request['from']}")
