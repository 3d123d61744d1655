"""The build backend of setuptools, behind one clear line where that is missing or too old: what pip and build call."""

NEEDED = 77  # the first to know SPDX licences; its bdist_wheel needs no package `wheel`
HINT = f"install what README's Set-up names: pip install ninja 'setuptools>={NEEDED}'"

try:
    import setuptools
except ImportError:
    raise SystemExit(f"setuptools is missing; {HINT}") from None
if int(setuptools.__version__.split(".")[0]) < NEEDED:
    raise SystemExit(f"setuptools {setuptools.__version__} is too old; {HINT}")

from setuptools.build_meta import *  # noqa: E402, F403
