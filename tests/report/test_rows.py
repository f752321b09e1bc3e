import pytest
import yaml

from zigma_pl.errors import UserError
from zigma_pl.report.rows import HEADER_FORM, by_table, load_rows, read_row

NAME = "table1_zigzag8.yaml"


def write(folder, text, name=NAME):
    (folder / name).write_text(text + "\nmodel: {}\n# Paper: a comment further down is not looked at\n")
    return folder / name


@pytest.fixture
def header():
    return HEADER_FORM.removesuffix("model:\n")


def test_the_form_in_the_readme_is_read(tmp_path, header):
    row = read_row(write(tmp_path, header.rstrip()))
    assert (row.name, row.table, row.label) == ("table1_zigzag8", "table 1", "zigzag-8")
    assert row.title == "scan schemes on MultiModal-CelebA-HQ 256"
    assert row.in_paper
    assert row.published == {"fid": "45.5", "fdd": "26.4", "kid": "0.011"}
    assert row.protocol == "5,000 samples"
    assert row.published_elsewhere == {"512 pixels": {"fid": "34.9", "fdd": "29.5", "kid": "0.023"}}
    assert row.command == "python -m zigma_pl fit --config experiments/table1_zigzag8.yaml"
    assert row.gpu_hours == "not measured"
    assert row.left_open.endswith("(here 400,000, as in the released configurations).")
    assert row.notes == ("whatever else there is to say.",)


def test_row_of_our_own_and_of_no_table(tmp_path):
    run = "\n# Run: python -m zigma_pl fit --config experiments/"
    own = read_row(write(tmp_path, f"# Our table 1x, controls, row sweep-8.{run}a.yaml", "a.yaml"))
    assert (own.table, own.label, own.in_paper, own.published) == ("table 1x", "sweep-8", False, {})
    none = read_row(write(tmp_path, f"# No table: digits, 8 x 8,\n#   with classes.{run}b.yaml", "b.yaml"))
    assert (none.table, none.title, none.label) == (None, "digits, 8 x 8, with classes", "b")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("# Paper table 1,", "# Paper tabel 1,", ["line 1", "Paper table 1, TITLE, row NAME."]),
        ("# Published: FID", "# Publshed: FID", ["line 2", "'# Published:'", "Publshed"]),
        ("# Note: whatever", "# whatever", ["line 9", "three spaces"]),
        ("FID 45.5, FDD", "FID 45.5; FDD", ["'FID 45.5; FDD 26.4'", "'FID 45.5'"]),
        ("KID 0.011", "QID 0.011", ["'QID 0.011'", "sFID"]),
        ("# GPU hours: not measured", "# Note: x", ["lacks '# GPU hours: ...'"]),
        ("# GPU hours:", "# Run:", ["line 6", "twice"]),
        ("experiments/table1_zigzag8", "experiments/table1_sweep", ["does not name experiments/table1_zigzag8.yaml"]),
        ("# Paper table", "# Our table", ["published numbers belong to a row of a paper's table"]),
    ],
)
def test_a_header_in_another_form_is_one_line_that_names_file_and_remedy(tmp_path, header, old, new, parts):
    assert old in header
    with pytest.raises(UserError) as caught:
        read_row(write(tmp_path, header.replace(old, new).rstrip()))
    assert "\n" not in str(caught.value)
    for part in [NAME, *parts]:
        assert part in str(caught.value)


def test_no_header_and_no_rows(tmp_path):
    with pytest.raises(UserError, match=r"no \.yaml file"):
        load_rows(tmp_path)
    (tmp_path / NAME).write_text("model: {}\n")
    with pytest.raises(UserError, match="line 1"):
        load_rows(tmp_path)


def test_rows_of_a_table_share_its_title(tmp_path, header):
    write(tmp_path, header.rstrip())
    other = header.replace("schemes", "orders").replace("zigzag8", "zigzag10")
    write(tmp_path, other.rstrip(), "table1_zigzag10.yaml")
    with pytest.raises(UserError, match="same words"):
        load_rows(tmp_path)


def test_numbers_in_names_are_numbers(tmp_path, header):
    for table, name in (("1", "zigzag10"), ("1", "zigzag2"), ("1x", "sweep"), ("2", "a"), ("12", "a")):
        text = header.replace("table 1,", f"table {table},").replace("table1_zigzag8", f"table{table}_{name}")
        write(tmp_path, text.rstrip(), f"table{table}_{name}.yaml")
    text = header.replace("Paper table 1,", "Paper figure 4,").replace("table1_zigzag8", "figure4_a")
    write(tmp_path, text.rstrip(), "figure4_a.yaml")
    names = [row.name for row in load_rows(tmp_path)]
    assert names == ["table1_zigzag2", "table1_zigzag10", "table1x_sweep", "table2_a", "table12_a", "figure4_a"]


def test_the_shipped_rows_have_the_header_and_are_in_the_order_of_the_paper(repository):
    rows = load_rows(repository / "experiments")
    tables = by_table(rows)
    assert [row.label for row in tables["table 1"]] == ["sweep", "zigzag-1", "zigzag-2", "zigzag-8"]
    assert tables["table 1"][0].published == {"fid": "158.1", "fdd": "75.9", "kid": "0.169"}
    assert [row.name for row in tables[None]] == ["digits", "portraits"]
    for row in rows:
        name = yaml.safe_load(row.file.read_text())["trainer"]["logger"]["init_args"]["name"]
        assert name == row.name  # the record of a run takes its name from the logger
        if row.table is not None:
            assert row.name.startswith(f"{row.table.replace(' ', '')}_")
