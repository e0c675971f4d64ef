import os
from collections.abc import Iterator

import jaxtyping
import pytest
from tests.type_checks import checked

jaxtyping.jaxtyped = checked


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps tests away from the user's cache; `ISTHMUS_TEST_CACHE` names one to keep for longer."""
    chosen = os.environ.get("ISTHMUS_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISTHMUS_CACHE", chosen)
        yield


_LONG_FIRST = ("workflows", "studies", "cli", "parity")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that take long before others: workers that share the files end together."""
    ranks = {name: rank for rank, name in enumerate(_LONG_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.parent.name, len(ranks)))
