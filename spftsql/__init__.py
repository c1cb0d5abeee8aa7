"""Text-to-SQL models, fine-tuned on what execution confirms, improved by self-play, and served."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__version__ = "0.1.0"


def _use_extensions_of_environment() -> None:
    """Points PyTorch at the C++ extensions that `make setup` built beside this virtual environment.

    PyTorch's own place for them is under the home directory, where builds for other versions of it may lie,
    and which a container or another user does not have. Building and loading call `ninja`, which is in the
    environment's `bin`, thus not on the PATH of someone who calls `.venv/bin/spftsql` without activating it.
    """
    if sys.prefix == sys.base_prefix:
        return
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    path = os.environ.get("PATH", os.defpath)
    programs = str(Path(sys.prefix) / "bin")
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = path + os.pathsep + programs


_use_extensions_of_environment()
