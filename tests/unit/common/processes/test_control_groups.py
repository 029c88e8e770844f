"""Control groups of both versions are found, the innermost first, and of none nothing is said."""

from beit.common.processes.control_groups import control_groups


def test_groups_of_both_versions_are_found(tmp_path):
    memberships = tmp_path / "cgroup"
    memberships.write_text("5:cpu,cpuacct:/job/step\n4:memory:/job\n0::/user/shell\n")
    found = [
        (str(folder.relative_to(tmp_path)), version) for folder, version in control_groups("cpu", memberships, tmp_path)
    ]
    assert found == [("cpu/job/step", 1), ("cpu/job", 1), ("cpu", 1), ("user/shell", 2), ("user", 2), (".", 2)]


def test_where_nothing_is_said_there_is_none(tmp_path):
    assert list(control_groups("memory", tmp_path / "missing", tmp_path)) == []
