"""Table files: mistakes get one message with the nearest name; sections fall back on the top level."""

import copy

import pytest
from toy_table import TABLE, grid_of, write_table

from runner.errors import UserError
from runner.tables.schema import at_scale, read_table


def changed(configs, *path, value):
    content = copy.deepcopy(TABLE)
    place = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    write_table(configs, content)
    return configs


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("titel",), "x", "unknown key 'titel' .*did you mean title"),
        (("metrics", "accuracy", "unti"), "%", "unknown key 'metrics.accuracy.unti' .*did you mean unit"),
        (("desk", "colums"), {}, "unknown key 'desk.colums' .*did you mean columns"),
        (("rows", "high"), {"override": []}, "unknown key 'rows.high.override' .*did you mean overrides"),
        (("claims", 0, "lefts"), "high", r"unknown key 'claims\[0\].lefts' .*did you mean left"),
        (("title",), None, "title: expected a text, got null"),
        (("seeds",), [-1], "seeds"),
        (("seeds",), ["a"], r"seeds\[0\]: expected an integer"),
        (("rows", "high"), "reportd", "rows.high: expected a mapping"),
        (("rows", "high"), {"columns": ["digit"]}, "rows.high.columns: there is no 'digit'; did you mean digits"),
        (("columns", "digits", "metric"), "serch", "columns.digits.metric: there is no 'serch'; did you mean search"),
        (("desk", "columns"), {"x": {"beside": "digit"}}, "columns.x.beside: there is no 'digit'; did you mean digits"),
        (("reported", "hihg"), {}, "reported: there is no 'hihg'; did you mean high"),
        (("reported", "high"), {"digit": 1}, "reported.high: there is no 'digit'; did you mean digits"),
        (("reported", "high"), {"digits": "unknown"}, "reported.high.digits: expected a mapping"),
        (("reported", "high"), {"digits": [1, -1]}, "reported.high.digits.spread: expected a number >= 0"),
        (("claims", 0, "left"), "hgih", r"claims\[0\]: there is no 'hgih'; did you mean high"),
        (("claims", 0, "left"), ["high", "digits"], r"claims\[0\]: left and right must both"),
        (("claims", 0, "direction"), "up", r"claims\[0\].direction: expected one of better, worse"),
        (("scales",), ["dsk"], r"scales\[0\]: expected one of paper, desk, smoke"),
    ],
)
def test_a_mistake_in_a_file(configs, path, value, message):
    changed(configs, *path, value=value)
    with pytest.raises(UserError, match=message) as error:
        read_table("toy/arms", [configs])
    assert "arms.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_table_gets_the_nearest(configs):
    with pytest.raises(UserError, match="unknown table 'toy/arm'; did you mean toy/arms"):
        read_table("toy/arm", [configs])


def test_a_missing_title_is_named(configs):
    content = copy.deepcopy(TABLE)
    del content["title"]
    write_table(configs, content)
    with pytest.raises(UserError, match="title: no value is set"):
        read_table("toy/arms", [configs])


def test_the_smallest_file_shows_accuracy_in_percent(configs):
    write_table(configs, {"title": "t", "source": "s", "rows": {"a": ["method=arm"]}, "columns": {"b": None}})
    section = at_scale(read_table("toy/arms", [configs]), "paper")
    assert (section.seeds, list(section.metrics), section.metrics["accuracy"].factor) == ([0], ["accuracy"], 100.0)


def test_a_section_has_its_own_and_else_the_top_levels(configs):
    changed(
        configs, "desk", value={"overrides": ["model=resnet32"], "rows": {"only": ["method.level=0.1"]}, "claims": []}
    )
    table = read_table("toy/arms", [configs])
    desk, paper = at_scale(table, "desk"), at_scale(table, "paper")
    assert (list(desk.rows), list(desk.columns), desk.seeds) == (["only"], ["digits", "search"], [0, 1, 2, 3, 4])
    assert len(paper.rows) == 4
    grid = grid_of(configs, "desk")
    assert next(cell.overrides for cell in grid.cells) == [
        "method=arm",
        "model=resnet32",
        "hardware=cpu",
        "method.level=0.1",
    ]
    assert {run.plan.config["model"]["name"] for run in grid.runs()} == {"resnet32"}


def test_one_run_a_seed_serves_all_metrics_and_has_the_key_of_a_plain_run(configs):
    from runner.compose import compose
    from runner.plan import plan

    grid = grid_of(configs, "smoke")
    assert len(grid.cells) == 12
    assert len(grid.runs()) == 9
    run = grid.cell("high", "digits").runs[2]
    assert run.plan.key == plan(compose(run.overrides, [configs]).config).key


def test_a_cell_that_cannot_be_composed_keeps_its_error_and_the_others_stand(configs):
    changed(configs, "rows", "high", value=["method.levle=0.6"])
    grid = grid_of(configs)
    errors = {cell.row for cell in grid.cells for run in cell.runs if run.error}
    assert errors == {"high"}
    assert "did you mean method.level" in grid.cell("high", "digits").runs[0].error


def test_a_wrong_override_of_the_user_is_a_wrong_request(configs):
    with pytest.raises(UserError, match=r"method\.levle"):
        grid_of(configs, "paper", "method.levle=1")
