"""Checks the memory that a program offers: which it is, and what its headers say."""

from __future__ import annotations

from collections.abc import Sequence

from chronetix import shm
from chronetix.protocol.messages import Offer, Port
from chronetixctl.conformance.forge import POLICIES, header_of
from chronetixctl.conformance.forms import Failed


def check_offer(offer: Offer, descriptors: Sequence[int], outputs: Sequence[Port], inputs: Sequence[Port]) -> None:
    """Raises Failed if the offer is not of exactly these ports, or its memory not as it should be."""
    for what, ports, names in (("rings", outputs, offer.rings), ("credits", inputs, offer.credits)):
        wanted = [port.route for port in ports]
        if sorted(names) != sorted(wanted) or (what == "credits" and names != wanted):
            raise Failed(f"an offer with {what} {wanted}", f"{what} {names}")
    try:
        for at, name in enumerate(offer.rings):
            shm.check(descriptors[at], "ring")
            _check_header(descriptors[at], next(port for port in outputs if port.route == name), ring=True)
        for at, port in enumerate(inputs, len(offer.rings)):
            shm.check(descriptors[at], "credit")
            _check_header(descriptors[at], port, ring=False)
        for descriptor in descriptors[len(offer.rings) + len(offer.credits) :]:
            shm.check(descriptor, "segment")
    except shm.PeerFault as fault:
        raise Failed("memory as shm/SPEC.md sections 1 and 2 demand", str(fault.args[0])) from None


def _check_header(descriptor: int, port: Port, *, ring: bool) -> None:
    found = header_of(descriptor)
    wanted = {"epoch": port.epoch, "base_seq": port.base_seq, "credits": port.credits}
    if ring:
        wanted |= {"watermark": port.watermark, "credit_low": port.credit_low}
        wanted["policy"] = POLICIES.index(port.policy)
    for name, value in wanted.items():
        came = getattr(found, name)
        if came != value:
            what = "RING" if ring else "CREDIT"
            raise Failed(f"{name} {value} in the header of {port.route}'s {what}", f"{name} {came}")
