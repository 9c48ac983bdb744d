"""The benchmark of intervals runs and says what it measured. Times are never asserted."""

from benchmarking import load_benchmark

benchmark = load_benchmark("resampling")


def test_all_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SETTINGS", {"study": (2, 3, 6, 4), "large": (1, 1, 9, 5)})
    benchmark.main(resamples=20, turns=2, output=tmp_path)
    assert "20 resamples of images" in " ".join(capsys.readouterr().out.split())
    (table,) = tmp_path.glob("*.csv")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".tex"]
    study, large = (line.split(",") for line in table.read_text("utf-8").splitlines()[1:])
    assert study[:5] == ["study", "2", "3", "6", "4"] and large[:5] == ["large", "1", "1", "9", "5"]
    assert all(float(median) > 0 for median in (study[5], study[8], large[5]))


def test_counts_are_possible():
    counts = benchmark.random_counts(2, 3, 5, 4)
    assert counts.shape == (2, 3, 5, 3, 4) and (counts[..., 0, :] <= counts[..., 1, :]).all()
    assert (counts[..., 0, :] <= counts[..., 2, :]).all()
