"""A box on disk."""

from tests.runtime.conftest import honest_box  # noqa: F401
