"""Runs whose steps are runs, on the command line: one tree, and each of them by itself."""

from __future__ import annotations

from tests.cli.helpers import MODULE, CommandLine, until


def test_one_tree(hosted_bus: CommandLine) -> None:
    """The root is listed and shown with what is below it; a run below is found by its id like any other."""
    done = hosted_bus("run", f"{MODULE}:nested", "--watch", "-o", "json")
    root = done.json
    assert (root["status"], root["value"]) == ("succeeded", 4.0)
    inside = {name: root["steps"][name]["run"] for name in ("churn", "again")}
    assert root["steps"]["total"]["run"] is None
    assert "churn/load | loading 2" in done.err.splitlines()
    assert done.err.splitlines()[-1].startswith("succeeded: 5 succeeded in ")

    until(lambda: len(hosted_bus("runs", "list", "--all", "-o", "json").json) == 3, "all are listed")
    assert [run["id"] for run in hosted_bus("runs", "list", "-o", "json").json] == [root["id"]]
    below = hosted_bus("runs", "list", "--parent", root["id"][:8], "-o", "json").json
    assert {run["id"] for run in below} == set(inside.values())
    assert {(run["pipeline"], run["parent"], run["root"]) for run in below} == {("churn", root["id"], root["id"])}

    lines = hosted_bus("runs", "show", root["id"]).out.splitlines()
    table = [line.split()[:2] for line in lines[lines.index("") + 2 :]]
    assert table == [
        [name, "succeeded"]
        for name in ("churn", "churn/load", "churn/total", "again", "again/load", "again/total", "total")
    ]
    shown = hosted_bus("runs", "show", root["id"], "-o", "json").json
    assert {key: shown[key] for key in root} == root
    assert {path: step["status"] for path, step in shown["below"].items()} == dict.fromkeys(
        ("churn/load", "churn/total", "again/load", "again/total"), "succeeded"
    )
    child = hosted_bus("runs", "show", inside["again"])
    assert f"step:       again of run {root['id']}" in child.out.splitlines()
    assert "parameters: rows=3 scale=1.0" in child.out.splitlines()

    written = hosted_bus("runs", "logs", root["id"]).out.splitlines()
    assert sorted(line.split(" |")[0].strip() for line in written) == ["again/load", "churn/load"]
    followed = hosted_bus("runs", "logs", root["id"], "-f").out.splitlines()
    assert sorted(line.split() for line in followed) == sorted(line.split() for line in written)
    watched = hosted_bus("runs", "watch", root["id"])
    assert watched.err.splitlines()[-1].startswith("succeeded: 5 succeeded in ")
    assert hosted_bus("runs", "logs", root["id"], "again/load").out == "loading 3\n"
    for follow in ((), ("-f",)):
        assert hosted_bus("runs", "logs", root["id"], "again", *follow).out == "again/load | loading 3\n"
    assert hosted_bus("runs", "logs", root["id"], "total/load").code == 3
    dry = hosted_bus("run", f"{MODULE}:nested", "--dry-run").out.splitlines()
    assert [line.split()[:5] for line in dry[2:4]] == [[name, "-", "-", "pipeline", "churn"] for name in inside]
