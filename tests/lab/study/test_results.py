from lab.study.results import add_result, read_results

ROW = {"variant": "a", "seed": 0, "budget": 1.0, "metrics": {}}


def test_rows_come_back_in_order(tmp_path):
    for seed in range(3):
        add_result(tmp_path / "deep" / "r.jsonl", ROW | {"seed": seed})
    assert [row["seed"] for row in read_results(tmp_path / "deep" / "r.jsonl")] == [0, 1, 2]


def test_a_line_that_was_cut_off_costs_its_own_run_only(tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    add_result(file, ROW)
    add_result(file, ROW | {"seed": 1})
    file.write_bytes(file.read_bytes()[:-9])
    assert [row["seed"] for row in read_results(file)] == [0]
    assert "line 2" in capsys.readouterr().err
    add_result(file, ROW | {"seed": 2})
    assert [row["seed"] for row in read_results(file)] == [0, 2]


def test_a_line_that_is_no_result_is_mentioned(tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    file.write_text('{"variant": "a"}\n')
    assert read_results(file) == [] and "line 1" in capsys.readouterr().err


def test_no_file_holds_no_results(tmp_path):
    assert read_results(tmp_path / "none.jsonl") == []
