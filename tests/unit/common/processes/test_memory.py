"""What of the machine's memory is for this process."""

from beit.common.processes.memory import control_group_rooms, free_machine_bytes, machine_memory_bytes


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_groups_of_a_process_and_those_above_it_bound_its_memory(tmp_path):
    two = {"memory__stat": "active_file 10\ninactive_file 20\nanon 5\n"}
    write_group(tmp_path / "a/b", memory__max="1000", memory__current="400", **two)
    write_group(tmp_path / "a", memory__max="max", memory__current="500", **two)
    write_group(tmp_path, memory__max="700", memory__current="600", **two)
    one = {"memory__limit_in_bytes": "900", "memory__usage_in_bytes": "300", "memory__stat": "total_active_file 7\n"}
    write_group(tmp_path / "memory", **one)
    groups = tmp_path / "cgroup"
    groups.write_text("9:cpu:/x\n4:memory:/elsewhere\n0::/a/b\n")
    assert sorted(control_group_rooms(groups, tmp_path)) == [130, 607, 630]
    assert control_group_rooms(tmp_path / "missing", tmp_path) == []


def test_free_memory_is_a_part_of_what_there_is():
    free, most = free_machine_bytes(), machine_memory_bytes()
    assert free is None or free > 0
    assert most is None or most > 1e8
