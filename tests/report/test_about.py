"""The `about:` block of experiments. Kind: files that others wrote give their content or one line."""

import os

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

from zigma_pl.core.errors import UserError
from zigma_pl.suite.report.experiments import FORM, by_table, load_experiments, read_experiment
from zigma_pl.suite.runs.composed import compose

NAME = "table1_zigzag8.yaml"


def write(folder, text=FORM, name=NAME):
    (folder / name).write_text(text)
    return folder / name


def test_the_form_in_the_readme_is_read(tmp_path):
    experiment = read_experiment(write(tmp_path))
    about = experiment.about
    assert (experiment.name, about.table, experiment.label) == ("table1_zigzag8", "table 1", "zigzag-8")
    assert about.title == "scan schemes on MultiModal-CelebA-HQ 256"
    assert about.paper.protocol == "5,000 samples"
    assert about.paper.left_open.endswith("(here 400,000, as in the released configs).")
    assert experiment.published == {"fid": "45.5", "fdd": "26.4", "kid": "0.011"}
    assert experiment.command == "python -m zigma_pl fit --config experiments/table1_zigzag8.yaml"
    assert (about.gpu_hours, about.notes) == ("not measured", ["any other remark."])


def test_numbers_stay_as_the_paper_prints_them(tmp_path):
    experiment = read_experiment(write(tmp_path, FORM.replace("FID: 45.5", "FID: 14.50, memory GB: 35")))
    assert (experiment.published["fid"], experiment.published["memory_gb"]) == ("14.50", "35")


def test_an_experiment_of_our_own_and_of_no_table(tmp_path):
    own = read_experiment(write(tmp_path, "about: {table: table 1x, title: controls, name: sweep-8}\n"))
    assert (own.about.table, own.label, own.about.paper, own.published) == ("table 1x", "sweep-8", None, {})
    none = read_experiment(write(tmp_path, "about:\n  title: digits, 8 x 8\n", "b.yaml"))
    assert (none.about.table, none.label, none.about.gpu_hours) == (None, "b", "not measured")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("table: table 1", "table: tabel 1", ["about", "table"]),
        ("table: table 1", "table: table 1/../x", ["table"]),
        ("published: {FID", "publshed: {FID", ["paper.publshed", "paper.published"]),
        ("FID: 45.5", "FID: about 45", ["paper.published.FID"]),
        ("KID: 0.011", "QID: 0.011", ["QID", "sFID"]),
        ("  title:", "  tilte:", ["tilte", "title"]),
        ("    left_open:", "    protocol2:", ["left_open"]),
        ("name: zigzag-8", 'name: "a\\n# b"', ["name"]),
        ("name: zigzag-8", "name: {a: 1}", ["name"]),
        ("about:", "abuot:", ["`about:`"]),
        ("about:", "about: 3\nx:", ["about"]),
        ("model:", "model: [", ["YAML"]),
        ("model:", "model: " + "[" * 20_000, ["YAML"]),
        ("model:", "model: \x00", ["YAML"]),
        ("model:", "model: " + "x" * 300_000, ["bytes"]),
    ],
)
def test_a_block_in_another_form_is_one_line_that_names_the_file(tmp_path, old, new, parts):
    assert old in FORM
    with pytest.raises(UserError) as caught:
        read_experiment(write(tmp_path, FORM.replace(old, new)))
    assert "\n" not in str(caught.value)
    for part in [NAME, *parts]:
        assert part in str(caught.value)


def test_a_pipe_and_an_odd_name_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match=r"pipe\.yaml"):
        load_experiments(tmp_path)
    with pytest.raises(UserError, match=r"\.yaml"):
        read_experiment(write(tmp_path, FORM, "a](b).yaml"))


def test_no_experiments(tmp_path):
    with pytest.raises(UserError, match=r"no \.yaml file"):
        load_experiments(tmp_path)


@pytest.mark.parametrize("change", [("schemes", "orders"), ("  paper:", "  notes: [x]\n  papers:")])
def test_experiments_of_a_table_share_its_title(tmp_path, change):
    write(tmp_path)
    without_paper = "about: {table: table 1, title: scan schemes on MultiModal-CelebA-HQ 256}\n"
    other = FORM.replace(*change) if change[0] == "schemes" else without_paper
    write(tmp_path, other, "table1_zigzag10.yaml")
    with pytest.raises(UserError, match=r"\.yaml: about\.title"):
        load_experiments(tmp_path)


def test_numbers_in_names_are_numbers(tmp_path):
    for table, name in (("1", "zigzag10"), ("1", "zigzag2"), ("1x", "sweep"), ("2", "a"), ("12", "a")):
        write(tmp_path, FORM.replace("table: table 1", f"table: table {table}"), f"table{table}_{name}.yaml")
    write(tmp_path, FORM.replace("table: table 1", "table: figure 4"), "figure4_a.yaml")
    names = [experiment.name for experiment in load_experiments(tmp_path)]
    assert names == ["table1_zigzag2", "table1_zigzag10", "table1x_sweep", "table2_a", "table12_a", "figure4_a"]


def test_the_shipped_experiments_have_the_block_and_are_in_the_order_of_the_paper(repository):
    experiments = load_experiments(repository / "experiments")
    tables = by_table(experiments)
    assert [experiment.label for experiment in tables["table 1"]] == [
        f"{name}{size}" for name in ("sweep", "zigzag-1", "zigzag-2", "zigzag-8") for size in ("", ", 512")
    ]
    assert tables["table 1"][0].published == {"fid": "158.1", "fdd": "75.9", "kid": "0.169"}
    assert [experiment.name for experiment in tables[None]] == ["digits", "portraits"]
    for experiment in experiments:
        table = experiment.about.table
        if table is not None:
            assert experiment.name.startswith(f"{table.replace(' ', '')}_")
            assert experiment.about.name
        if experiment.about.paper and experiment.name != "table4_searched8":  # orders of our own beside the paper's
            assert experiment.published


def test_the_block_changes_no_configuration_of_a_run(tmp_path, repository):
    shipped = repository / "experiments" / NAME
    config = compose([shipped])
    assert "about" not in config
    assert compose([write(tmp_path, shipped.read_text().replace("name: zigzag-8", "name: another"))]) == config


MUTATIONS = st.tuples(
    st.integers(0, len(FORM)), st.integers(0, 30), st.text(max_size=10) | st.sampled_from("{}[]&*!|>:-")
)


@pytest.mark.usefixtures("one_gigabyte_more")
@bounded(max_examples=150)
@given(content=st.binary(max_size=100) | st.lists(MUTATIONS, min_size=1, max_size=3))
def test_any_bytes_and_mutated_files_give_an_experiment_or_one_line(tmp_path_factory, content):
    if isinstance(content, list):
        text = FORM
        for place, length, new in content:
            text = text[:place] + new + text[place + length :]
        content = text.encode(errors="surrogatepass")
    file = tmp_path_factory.getbasetemp() / NAME
    file.write_bytes(content)
    message = ""
    try:
        read_experiment(file)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
