"""The content types of data: how values become the bytes of a frame or a bus message, and what is read from such bytes.

Two rules hold for all of them. What a sender accepts, a receiver can read: a value that has no faithful form is refused
where it is sent, with a text that says where in the value it is and what to write instead. And the limits are those of
data, not of the control plane: a frame may hold as many items as its memory, only nesting is bounded
(:data:`chronetix.protocol.content.natural.MAX_DEPTH`).

Nothing here needs numpy; where it is installed, arrays come as its arrays.
"""
