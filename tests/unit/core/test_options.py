import pytest

from isthmus.core.errors import ConfigError
from isthmus.core.options import require_word


def test_a_word_that_an_option_knows_is_let_through():
    require_word("edit", "ablate", ("add", "ablate"))


@pytest.mark.parametrize("given", ["Ablate", "ab", "", None, 1, ["ablate"]])
def test_anything_else_is_refused_with_the_words_there_are(given):
    with pytest.raises(ConfigError, match=r"no edit .*: use one of add, ablate"):
        require_word("edit", given, ("add", "ablate"))
