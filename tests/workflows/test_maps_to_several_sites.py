from functools import cache
from pathlib import Path

import pytest
import torch
from tests.workflows.small import save_tiny, write_contrast, write_world_questions

import isthmus
from isthmus.core.errors import ConfigError, SiteError
from isthmus.core.progress import SilentProgress
from isthmus.core.sites import Site
from isthmus.data.prompts import read_questions
from isthmus.directions.files import load_direction
from isthmus.maps.files import FittedMap, load_map, save_map
from isthmus.maps.ridge import RidgeFitter
from isthmus.models.encoding import encode_prompts
from isthmus.models.language_model import load_language_model
from isthmus.workflows.pairing import paired_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("several")
    save_tiny(place / "one")
    save_tiny(place / "two", "gpt2", kind="metaspace", n_layers=3, hidden_size=24, seed=1)
    write_contrast(place / "contrast.jsonl")
    write_world_questions(place / "texts.jsonl")
    return place


@cache
def learned(folder: Path, target_site: object, method: str = "ridge_gcv") -> FittedMap:
    return isthmus.learn_map(
        str(folder / "one"),
        str(folder / "two"),
        folder / "texts.jsonl",
        target_site=target_site,
        map=method,
    )


def test_a_map_to_several_sites_returns_what_maps_to_each_would(folder: Path):
    both = learned(folder, (2, 0), "ridge")
    models = [load_language_model(str(folder / name)) for name in ("one", "two")]
    questions = read_questions(folder / "texts.jsonl")
    encoded = [
        encode_prompts(
            lm.tokenizer, [q.prompt for q in questions], answers=[q.answer or "" for q in questions]
        )
        for lm in models
    ]
    for i, site in enumerate((Site(2), Site(0))):
        rows = paired_rows(
            *models, tuple(encoded), (both.source_sites, site), progress=SilentProgress()
        )
        alone = RidgeFitter((both.map.details["strength"],)).fit(
            rows["train"].moments, rows["selection"].moments
        )
        torch.testing.assert_close(both.map.weight[:, 24 * i : 24 * (i + 1)], alone.weight)


def test_a_direction_arrives_at_every_site_of_such_a_map(folder: Path, tmp_path: Path):
    direction = isthmus.learn_direction(str(folder / "one"), folder / "contrast.jsonl")
    fitted = learned(folder, "1,2")
    carried = isthmus.transfer(direction, fitted, out=tmp_path / "carried")
    assert carried.sites == (Site(1), Site(2))
    joined = torch.cat([direction.at(site).vectors for site in fitted.source_sites], dim=-1)
    expected = fitted.map.linear(joined)
    torch.testing.assert_close(carried.at(Site(1)).vectors, expected[:, :24])
    torch.testing.assert_close(carried.at(Site(2)).vectors, expected[:, 24:])
    assert carried.certificate is not None
    assert carried.certificate.target_site == "resid_post[1], resid_post[2]"
    again = load_direction(tmp_path / "carried")
    assert torch.equal(again.at(Site(2)).vectors, carried.at(Site(2)).vectors)
    assert again.certificate == carried.certificate


def test_a_map_to_several_sites_comes_back_from_its_file(folder: Path, tmp_path: Path):
    fitted = learned(folder, "all")
    save_map(tmp_path / "kept", fitted)
    again = load_map(tmp_path / "kept")
    assert again.target_sites == (Site(0), Site(1), Site(2))
    assert torch.equal(again.map.weight, fitted.map.weight)


def test_a_reduced_rank_map_shares_its_directions_among_the_sites(folder: Path):
    weight = learned(folder, "all", "reduced_rank").map.weight
    assert int(torch.linalg.matrix_rank(weight)) <= 64


def test_what_leads_to_one_site_only_says_so(folder: Path):
    with pytest.raises(ConfigError, match="leads to one site"):
        learned(folder, (0, 1), "identity")
    with pytest.raises(SiteError, match="twice"):
        learned(folder, (1, 1))
