import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import tiny_network, tiny_tokenizer
from tests.manifests import rewrite_fields

from isthmus.core.artifacts import MANIFEST_NAME, TENSORS_NAME, read_artifact
from isthmus.core.errors import (
    ArtifactError,
    NonFiniteError,
    OrganismError,
    OutputError,
    ShapeError,
)
from isthmus.models.fingerprints import hash_tokenizer, hash_weights
from isthmus.models.language_model import load_language_model
from isthmus.models.organisms import (
    cache_folder,
    from_nibbles,
    organism_folder,
    pack_organism,
    packed_folder,
    shipped_organisms,
    to_nibbles,
    unpack_organism,
)

TOKENIZER = tiny_tokenizer()
WEIGHTS = "model.safetensors"
# Below 2⁻¹⁴ float16 has fewer digits: a scale is off by at most 2⁻²⁵, an entry by 7 times that.
COARSEST = 7 * 2**-25


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISTHMUS_CACHE", str(tmp_path / "cache"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def network(family="llama", seed=0, **changes):
    """A tiny network whose weights float16 can hold, as those of a packed base are."""
    made = tiny_network(family, n_vocab=len(TOKENIZER), seed=seed, **changes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(parameter.half())
    return made


def fine_tuned(base, seed=7):
    """The base with a little noise on every parameter."""
    changed = tiny_network("llama", n_vocab=len(TOKENIZER))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, origin in zip(changed.parameters(), base.parameters(), strict=True):
            parameter.copy_(origin + 0.01 * torch.randn(origin.shape, generator=generator))
    return changed


def built(name, model, **options):
    """Packs an organism where `isthmus organism build` puts it."""
    fields = {"name": name, "base": options.pop("base_name", None)}
    pack_organism(cache_folder() / "built" / name, model, TOKENIZER, fields, **options)
    return packed_folder(name)


def built_pair():
    base = network()
    built("tiny", base)
    tuned = fine_tuned(base)
    return tuned, built("tiny-tuned", tuned, base=base, base_name="tiny")


def change_fields(packed, **changes):
    rewrite_fields(packed, lambda fields: fields.update(changes))


def test_the_cache_is_where_the_environment_says_or_in_the_home_folder(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ISTHMUS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "isthmus"


MATRICES = st.tuples(
    st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31), st.floats(-12, 4)
).map(
    lambda drawn: (
        10 ** drawn[3] * torch.randn(drawn[:2], generator=torch.Generator().manual_seed(drawn[2]))
    )
)


@given(matrix=MATRICES)
@settings(deadline=None)
def test_four_bits_are_off_by_at_most_half_a_level(matrix):
    before = matrix.clone()
    packed, scale = to_nibbles(matrix)
    off = (from_nibbles(packed, scale, matrix.shape[1]) - matrix).abs()
    bound = (scale.float() / 2).clamp(min=COARSEST)[:, None]
    assert bool((off <= bound * (1 + 1e-5)).all())
    assert torch.equal(matrix, before)


@given(matrix=MATRICES.filter(lambda matrix: bool((matrix.abs().amax(1) > 7 * 2**-14).all())))
@settings(deadline=None)
def test_packing_what_was_unpacked_changes_nothing_more(matrix):
    once = from_nibbles(*to_nibbles(matrix), matrix.shape[1])
    assert torch.equal(from_nibbles(*to_nibbles(once), matrix.shape[1]), once)


def test_the_levels_of_a_row_do_not_depend_on_other_rows():
    matrix = torch.tensor([[7.0, -7.0, 1.0], [0.0, 0.0, 0.0], [7e3, -3e3, 0.0]])
    packed, scale = to_nibbles(matrix)
    assert torch.equal(from_nibbles(packed, scale, 3), matrix)
    assert scale.tolist() == [1.0, 0.0, 1000.0]


def test_two_entries_share_a_byte():
    packed, _ = to_nibbles(torch.ones(5, 7))
    assert packed.shape == (5, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7e5])
def test_a_difference_that_is_not_finite_is_refused(bad):
    with pytest.raises(NonFiniteError):
        to_nibbles(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("qwen2", {}), ("gemma2", {})],
)
def test_a_base_comes_back_as_it_was_packed(family, changes):
    model = network(family, **changes)
    read, tokenizer = unpack_organism(built("tiny", model))
    assert hash_weights(read) == hash_weights(model)
    assert hash_tokenizer(tokenizer) == hash_tokenizer(TOKENIZER)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (
        TOKENIZER.pad_token,
        TOKENIZER.eos_token,
        TOKENIZER.bos_token,
    )
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    assert not read.training


def test_the_weights_of_a_base_are_rounded_to_float16():
    model = tiny_network("llama", n_vocab=len(TOKENIZER))
    packed = built("tiny", model)
    assert {t.dtype for t in read_artifact(packed).tensors.values()} == {torch.float16}
    read, _ = unpack_organism(packed)
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    assert hash_weights(read) == hash_weights(model.half())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7e5])
@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("has_base", [False, True])
def test_weights_that_the_packed_form_does_not_hold_are_refused(tmp_path, bad, name, has_base):
    model = network()
    with torch.no_grad():
        model.get_parameter(name).flatten()[0] = bad
    base = network() if has_base else None
    with pytest.raises(NonFiniteError):
        pack_organism(tmp_path / "x", model, TOKENIZER, {}, base=base)
    assert not (tmp_path / "x").exists()


def test_a_tied_head_is_stored_once():
    packed = built("tiny", network(tie_word_embeddings=True))
    stored = read_artifact(packed).tensors
    assert sum(tuple(tensor.shape) == (len(TOKENIZER), 16) for tensor in stored.values()) == 1


def test_a_fine_tune_is_its_base_and_a_difference_within_half_a_level():
    tuned, packed = built_pair()
    stored = read_artifact(packed).tensors
    read = dict(unpack_organism(packed)[0].named_parameters())
    for name, wanted in tuned.named_parameters():
        off = (read[name] - wanted).abs().detach()
        if wanted.ndim == 2:
            assert bool((off <= stored[f"{name}.scale"].float()[:, None] / 2 + 1e-6).all())
        else:
            # Half precision keeps eleven bits of a difference of at most about 0.05.
            assert float(off.max()) <= 0.05 * 2**-11 + 1e-6


def test_a_fine_tune_takes_less_than_half_the_room_of_its_base():
    _, packed = built_pair()
    sizes = [(p / TENSORS_NAME).stat().st_size for p in (packed, packed_folder("tiny"))]
    assert sizes[0] < sizes[1] / 2
    assert all(
        t.dtype in {torch.uint8, torch.float16} for t in read_artifact(packed).tensors.values()
    )


def test_a_fine_tune_speaks_through_the_tokenizer_of_its_base():
    _, packed = built_pair()
    assert "tokenizer" not in read_artifact(packed).fields
    assert hash_tokenizer(unpack_organism(packed)[1]) == hash_tokenizer(TOKENIZER)


def test_a_model_of_another_shape_than_its_base_is_not_packed(tmp_path):
    other = network(n_layers=3)
    with pytest.raises(ShapeError, match="base"):
        pack_organism(tmp_path / "x", other, TOKENIZER, {"base": "tiny"}, base=network())
    assert not (tmp_path / "x").exists()


def test_unpacking_leaves_random_numbers_elsewhere_alone():
    packed = built("tiny", network())
    before = torch.random.get_rng_state()
    unpack_organism(packed)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_unknown_organism_is_refused_with_those_there_are():
    with pytest.raises(OrganismError) as caught:
        organism_folder("unheard-of")
    assert "unheard-of" in str(caught.value)
    assert all(name in str(caught.value) for name in shipped_organisms())


def test_a_fine_tune_without_its_base_is_refused_by_the_name_of_the_base():
    _, packed = built_pair()
    shutil.rmtree(packed_folder("tiny"))
    for use in (lambda: unpack_organism(packed), lambda: organism_folder("tiny-tuned")):
        with pytest.raises(OrganismError, match="no organism 'tiny'"):
            use()


@pytest.mark.parametrize("change", [{"n_layers": 3}, {"n_layers": 1}, {"intermediate_size": 40}])
def test_a_base_of_another_shape_than_the_one_that_was_fine_tuned_is_refused(change):
    _, packed = built_pair()
    built("tiny", network(**change))
    with pytest.raises(ArtifactError, match="base"):
        unpack_organism(packed)


def test_a_built_organism_comes_before_a_shipped_one_of_its_name():
    if not (shipped_names := shipped_organisms()):
        pytest.skip("none is shipped")
    name = shipped_names[0]
    shipped = packed_folder(name)
    assert built(name, network()) != shipped
    shutil.rmtree(cache_folder())
    assert packed_folder(name) == shipped


def test_a_shipped_fine_tune_stays_on_the_shipped_base_when_another_is_built():
    tuned = {
        name: base
        for name in shipped_organisms()
        if (base := read_artifact(packed_folder(name)).fields["base"])
    }
    if not tuned:
        pytest.skip("none is shipped")
    name = min(tuned, key=len)
    packed = packed_folder(name)
    before = hash_weights(unpack_organism(packed)[0])
    built(tuned[name], network())
    assert hash_weights(unpack_organism(packed)[0]) == before


def test_an_unpacked_organism_is_a_plain_model_folder():
    tuned, packed = built_pair()
    folder = organism_folder("tiny-tuned")
    lm = load_language_model(str(folder), dtype="float32")
    assert hash_weights(lm.model) == hash_weights(unpack_organism(packed)[0])
    named = load_language_model("organism:tiny-tuned", dtype="float32")
    assert named.identity.is_same_model(lm.identity)
    assert named.identity.n_layers == tuned.config.num_hidden_layers


def test_a_whole_unpacked_organism_is_used_again():
    built("tiny", network())
    folder = organism_folder("tiny")
    written = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert organism_folder("tiny") == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == written


def flip(folder):
    whole = bytearray((folder / WEIGHTS).read_bytes())
    whole[-1] ^= 1
    (folder / WEIGHTS).write_bytes(whole)


def cut(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        cut,
        empty,
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "isthmus-files.json").unlink(),
        lambda folder: (folder / "isthmus-files.json").write_text("{"),
        lambda folder: (folder / "generation_config.json").write_text("{}"),
        lambda folder: (folder / "chat_template.jinja").write_text("another"),
    ],
)
def test_a_damaged_unpacked_organism_is_made_again(damage):
    built("tiny", network())
    folder = organism_folder("tiny")
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}
    damage(folder)
    assert organism_folder("tiny") == folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
    assert names(folder.parent) == [folder.name]


def test_a_file_in_the_place_of_an_unpacked_organism_is_not_overwritten():
    built("tiny", network())
    folder = organism_folder("tiny")
    shutil.rmtree(folder)
    folder.write_text("mine")
    with pytest.raises(OutputError, match=folder.name):
        organism_folder("tiny")


def test_a_damaged_packed_organism_is_refused_and_leaves_nothing_unpacked():
    packed = built("tiny", network())
    whole = bytearray((packed / TENSORS_NAME).read_bytes())
    whole[-1] ^= 1
    (packed / TENSORS_NAME).write_bytes(whole)
    with pytest.raises(ArtifactError, match="damaged"):
        organism_folder("tiny")
    assert not (cache_folder() / "organisms").exists()


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"format": 1, "kind": "organism", "fields": null}']
)
def test_a_manifest_that_is_none_is_refused(manifest):
    packed = built("tiny", network())
    (packed / MANIFEST_NAME).write_text(manifest)
    with pytest.raises(ArtifactError):
        organism_folder("tiny")


@pytest.mark.parametrize("field", ["config", "tokenizer"])
def test_a_packed_organism_that_lacks_a_part_is_refused_by_the_name_of_the_part(field):
    packed = built("tiny", network())
    rewrite_fields(packed, lambda fields: fields.pop(field))
    with pytest.raises(ArtifactError, match=field):
        unpack_organism(packed)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_weights_that_do_not_fit_the_configuration_are_refused(change):
    packed = built("tiny", network())
    change_fields(packed, config=read_artifact(packed).fields["config"] | change)
    with pytest.raises(ArtifactError, match="LlamaForCausalLM"):
        unpack_organism(packed)


def test_another_organism_of_the_same_name_is_unpacked_elsewhere():
    built("tiny", network())
    first = organism_folder("tiny")
    built("tiny", network(seed=1))
    assert organism_folder("tiny") != first


def test_a_fine_tune_is_unpacked_elsewhere_when_its_base_is_built_again():
    built_pair()
    first = organism_folder("tiny-tuned")
    built("tiny", network(seed=1))
    assert organism_folder("tiny-tuned") != first


def test_unpacking_at_the_same_time_gives_everyone_the_same_whole_folder():
    built("tiny", network())
    with ThreadPoolExecutor(4) as threads:
        folders = list(threads.map(organism_folder, ["tiny"] * 4))
    assert len(set(folders)) == 1
    assert names(folders[0].parent) == [folders[0].name]
    assert hash_weights(load_language_model(str(folders[0])).model) == hash_weights(network())
