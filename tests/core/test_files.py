"""Locks of folders: one holder at a time."""

from affectgpt.core.files import locked


def test_a_folder_has_one_holder_at_a_time(tmp_path):
    with locked(tmp_path) as first, locked(tmp_path, wait=False) as second:
        assert first and not second
    with locked(tmp_path, wait=False) as free:
        assert free
