import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps tests away from the user's cache; `ISTHMUS_TEST_CACHE` names one to keep for longer."""
    chosen = os.environ.get("ISTHMUS_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", chosen)
        yield
