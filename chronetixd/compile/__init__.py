"""FlowAdapter: the text of a flow, DSL (long or short form, YAML or JSON) or CompileOutput → CompileOutput.

Rules: all problems are reported at once with file, line, column and a suggestion; unknown fields are passed through; a
text that is a CompileOutput already is returned unchanged. Pure: no file is opened, no clock is read, and whether an
artifact exists is not checked.
"""

from __future__ import annotations

from chronetixd.compile.artifacts import kind_of_uri
from chronetixd.compile.flow import Compiled, compile_text
from chronetixd.compile.problems import CompileError, Position, SourceProblem

__all__ = ["CompileError", "Compiled", "Position", "SourceProblem", "compile_text", "kind_of_uri"]
