"""Packages of which a part is wanted, without what the whole would import."""

from __future__ import annotations

import sys
import threading
import warnings
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_LOCK = threading.RLock()


class _Package(ModuleType):
    """A package that runs its own beginning when it is first asked for something that is none of its modules."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if type(self) is _Package:
                self.__class__ = ModuleType  # type: ignore[assignment]
                loader = None if self.__spec__ is None else self.__spec__.loader
                if loader is not None:
                    with warnings.catch_warnings():  # of a package that imports it, which no user of ours can mend
                        warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
                        loader.exec_module(self)
        return getattr(self, name)


def opened(name: str) -> None:
    """From now on `import NAME.PART` imports that part and what it needs, and `import NAME` nothing yet; all else is as
    ever.

    clip and segment_anything begin by importing torchvision, and with it torch's compiler, which takes longer than
    the demo model's first mask; their networks need neither.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    with _LOCK:
        if name in sys.modules:
            return
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        package = module_from_spec(spec)
        package.__class__ = _Package
        sys.modules[name] = package
