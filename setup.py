"""The three C extensions; everything else stands in pyproject.toml."""

import os
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import chain

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -g1: a backtrace needs the lines; the rest of -g, which Python asks for, takes a fifth of the compiler's time.
FLAGS = ["-std=c11", "-O3", "-g1", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-D_GNU_SOURCE"]
ABI3 = [("Py_LIMITED_API", "0x030B0000")]


class BuildOnEveryCore(build_ext):
    """Compiles as many files at once as there are cores: most of what an installation takes is the compiler."""

    def build_extensions(self):
        compile_in_turn = self.compiler.compile

        def compile_at_once(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda source: compile_in_turn([source], **options), sources)
                return list(chain.from_iterable(made))

        self.compiler.compile = compile_at_once
        super().build_extensions()


setup(
    cmdclass={"build_ext": BuildOnEveryCore},
    ext_modules=[
        Extension(
            "chronetix.shm._native",
            sources=sorted(glob("shm/native/*.c")),
            depends=[*sorted(glob("shm/include/chronetix/*.h")), *sorted(glob("shm/native/*.h"))],
            include_dirs=["shm/include"],
            extra_compile_args=FLAGS,
            define_macros=ABI3,
            py_limited_api=True,
        ),
        Extension(
            "chronetix.protocol._cbor",
            sources=sorted(glob("protocol/native/*.c")),
            depends=sorted(glob("protocol/native/*.h")),
            extra_compile_args=FLAGS,
            define_macros=ABI3,
            py_limited_api=True,
        ),
        Extension(
            "chronetix.nodeworker._clone",
            sources=["nodeworker/clone.c"],
            extra_compile_args=FLAGS,
            define_macros=ABI3,
            py_limited_api=True,
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
