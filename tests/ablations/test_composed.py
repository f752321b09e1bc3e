import pytest

from zigma_pl.core.errors import UserError
from zigma_pl.suite.runs.composed import compose, differences, fingerprint, option, without


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_later_files_win_and_comments_do_not_count(tmp_path):
    base = write(tmp_path, "base.yaml", "trainer: {max_steps: 10, logger: {name: a}}\n")
    over = write(tmp_path, "over.yaml", "trainer: {max_steps: 20}\nema: {decay: 0.9}\n")
    config = compose([base, over])
    assert config == {"trainer": {"max_steps": 20, "logger": {"name": "a"}}, "ema": {"decay": 0.9}}
    same = write(tmp_path, "same.yaml", "# words\nema: {decay: 0.9}\ntrainer: {logger: {name: a}, max_steps: 20}\n")
    assert fingerprint(compose([same])) == fingerprint(config)
    assert fingerprint(compose([base])) != fingerprint(config)
    assert option(config, "trainer.logger.name") == "a"
    assert option(config, "trainer.devices", 3) == 3
    assert option(config, "ema.decay.deeper") is None


def test_a_list_takes_the_place_of_a_mapping_and_back(tmp_path):
    one, several = "mixers: {class_path: a.A, init_args: {n: 1}}\n", "mixers: [{class_path: b.B}, c.C]\n"
    files = [write(tmp_path, "one.yaml", one), write(tmp_path, "several.yaml", several)]
    assert compose(files) == {"mixers": [{"class_path": "b.B"}, "c.C"]}
    assert compose(files[::-1]) == {"mixers": {"class_path": "a.A", "init_args": {"n": 1}}}


def test_differences_name_options_and_both_values():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": {}}
    assert differences(old, new) == ["a.c 2 -> 4", "d 3 -> absent", "e absent -> {}"]
    assert differences(old, old) == []


def test_without_leaves_out_whole_groups_and_single_options():
    config = {"model": {"sampler": {"steps": 1}, "width": 2}, "scorer": {"n": 1}, "scorers": 1}
    assert without(config, ["scorer", "model.sampler"]) == {"model": {"width": 2}, "scorers": 1}
    assert without(config, ["model.sampler", "model.width"]) == {"scorer": {"n": 1}, "scorers": 1}


@pytest.mark.parametrize("text", ["- a list", "a: [1"])
def test_what_is_no_configuration_is_named(tmp_path, text):
    with pytest.raises(UserError, match=r"bad\.yaml"):
        compose([write(tmp_path, "bad.yaml", text)])
    with pytest.raises(UserError, match=r"absent\.yaml"):
        compose([tmp_path / "absent.yaml"])
