"""A flow's life: submitted → validated → starting → running → draining → stopped, or failed.

The table is total: every state has a handler for every kind of event, an empty cell is illegal and changes nothing. A
flow that fails while it has workers passes through draining with its failure noted, so that ``stopped`` and ``failed``
always mean that nothing of it is left. Sinks start first and sources stop first; the rest ends as its inputs end.
One deadline is armed at a time; which one it is follows from the flow's state. Before a flow first ran nothing of it is
restarted. A flow that drains in good order restarts what fails, so that no frame is lost; one that drains because it
failed, or that was told to end at once, restarts nothing any more.

``state`` is what a flow knows, and decides nothing. What is to be done about an event is in handlers, a module for each
part of its life: ``starting``, ``running``, ``draining``, with ``restarts`` and ``ending`` below them. ``table`` names
the handler for each state and event, and is where events come in. Words are in ``chronetixd.core.flow_messages``.
"""
