"""The state machine of a flow: submitted → validated → starting → running → draining → stopped, or failed.

The table is total: every state has a cell for every kind of event. An empty cell means that the event is illegal and
changes nothing. A flow that fails while it has workers passes through draining with its failure noted, so that
``stopped`` and ``failed`` always mean that no worker is left. Sinks start first and sources stop first; the other nodes
end as their inputs end. One deadline is armed at a time, and the flow's state determines which one. No node is
restarted before the flow has run. A flow that drains in order restarts nodes that fail, so that no frame is lost. A
flow that drains because it failed, or that was told to end at once, restarts nothing.

``state`` holds what a flow knows and decides nothing. Handlers decide what to do about an event; there is a module of
handlers for each part of a flow's life: ``starting``, ``running`` and ``draining``, with ``restarts`` and ``ending``
below them. ``table`` names the handler for each state and event, and is where events come in. States, events and
instructions are defined in ``chronetixd.core.flow_messages``.
"""
