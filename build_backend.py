"""setuptools' own build backend, behind one clear line where setuptools is missing or too old. Used by pip and build."""

NEEDED = (77,)  # the first to know SPDX licences; its bdist_wheel needs no package `wheel`
HINT = "install what README's Set-up names: pip install ninja 'setuptools>=77'"

try:
    import setuptools
except ImportError:
    raise SystemExit(f"setuptools is missing; {HINT}") from None
if tuple(int(part) for part in setuptools.__version__.split(".")[:1]) < NEEDED:
    raise SystemExit(f"setuptools {setuptools.__version__} is too old; {HINT}")

from setuptools.build_meta import *  # noqa: E402, F403
