"""The package of plugins that were loaded from files; see :mod:`chronetix.nodeworker.api.files`."""

import sys

from chronetix.nodeworker.api.files import Folders

__path__: list[str] = []

if not any(isinstance(each, Folders) for each in sys.meta_path):
    sys.meta_path.insert(0, Folders())
