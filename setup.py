"""The three C extensions; everything else stands in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup

FLAGS = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-D_GNU_SOURCE"]
ABI3 = [("Py_LIMITED_API", "0x030B0000")]

setup(
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
