"""What all tests share: nothing that beit keeps for later lands in the cache of whoever runs them."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory):
    """Give all tests of a process a cache of their own; a test that needs an empty one sets another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("beit-cache")))
        yield
