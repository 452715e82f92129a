"""Prints each flow of the daemon with its state."""

from chronetix.client import Client

with Client.connect() as client:
    for flow in client.call("list")["flows"]:
        print(flow["name"], flow["state"])
