import pytest

from isthmus.core.errors import ConfigError, DataError
from isthmus.evaluation.embedding_similarity import can_embed, embedding_similarity


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        embedding_similarity(tmp_path / "nowhere", ["a"], ["b"])


def test_texts_without_partners_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 texts and 1 references"):
        embedding_similarity(tmp_path, ["a", "b"], ["c"])


@pytest.mark.skipif(can_embed(), reason="sentence-transformers is installed")
def test_without_the_package_the_message_says_how_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        embedding_similarity(tmp_path, ["a"], ["b"])
