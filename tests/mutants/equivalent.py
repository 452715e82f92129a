"""Mutants that change nothing that anybody can see, each with the reason: a sample leaves them out.

Known by file and lines, not by their numbers. A test fails when one is no longer a mutant of the code.
"""

from __future__ import annotations

from typing import Final

_ENCODE: Final = "protocol/native/encode.c"

EQUIVALENT: Final[dict[tuple[str, str], str]] = {
    (
        _ENCODE,
        r"""-memcpy(to, value != value ? "\xf9\x7e\x00" : value > 0 ? "\xf9\x7c\x00" : "\xf9\xfc\x00", 3);
+memcpy(to, value != value ? "\xf9\x7e\x00" : value > 1 ? "\xf9\x7c\x00" : "\xf9\xfc\x00", 3);""",
    ): "what is no NaN there is one of the infinities",
    (
        _ENCODE,
        """-if (count == -1 && PyErr_Occurred()) return -1;
+if (count != -1 && PyErr_Occurred()) return -1;""",
    ): "no integer has more bits than a long can count",
    (
        _ENCODE,
        """-bool good = one(&w, value, false) >= 0 && run(&w, PY_SSIZE_T_MAX, &spent) > 0;
+bool good = one(&w, value, false) >= 0 && run(&w, PY_SSIZE_T_MAX, &spent) >= 0;""",
    ): "without a budget nothing is left over: it is 1 or -1",
    (
        _ENCODE,
        """-PyObject *wide = over > 0 ? Py_NewRef(number) : PyNumber_Invert(number);
+PyObject *wide = over >= 0 ? Py_NewRef(number) : PyNumber_Invert(number);""",
    ): "it is 1 or -1 there",
    (
        _ENCODE,
        """-return more_work < 0 ? -1 : work + more_work;
+return more_work <= 0 ? -1 : work + more_work;""",
    ): "an item is some work",
}
