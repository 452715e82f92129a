"""FlowAdapter: the text of a flow, DSL (long or short form, YAML or JSON) or CompileOutput → CompileOutput.

Rules: everything wrong is reported at once with file, line, column and a suggestion; unknown fields are
passed through; a text that already is a CompileOutput comes out as it went in. Pure: no file is opened, no
clock read, no artifact looked for.
"""

from __future__ import annotations

from chronetixd.compile.flow import Compiled, compile_text
from chronetixd.compile.problems import CompileError, Position, Problem

__all__ = ["CompileError", "Compiled", "Position", "Problem", "compile_text"]
