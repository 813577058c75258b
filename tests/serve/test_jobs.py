"""The folder of jobs: what a new start makes of it, and how much is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiepoint.errors import InputError
from tiepoint.serve.jobs import MOST_STARTS, Job, Jobs


def add(jobs: Jobs, **more: object) -> Job:
    job = Job(id=jobs.begin_upload(), kind="match", **more)
    (jobs.folder_of(job.id) / "photos").mkdir()
    (jobs.folder_of(job.id) / "photos" / "0001-a.png").write_bytes(bytes(1000))
    jobs.add(job)
    return job


def test_a_new_start_takes_up_what_was_running_and_keeps_the_order(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    added = [add(jobs, title=str(i)) for i in range(3)]
    added[0].state, added[0].starts = "running", 1
    jobs.save(added[0])
    added[1].state = "done"
    jobs.save(added[1])
    (tmp_path / ("f" * 32)).mkdir()  # an upload that was cut off
    (tmp_path / "mine").mkdir()  # nothing of the server's
    jobs.close()
    jobs = Jobs(tmp_path)
    assert [job.title for job in jobs.waiting()] == ["0", "2"]
    assert [job.title for job in jobs.all()] == ["2", "1", "0"]
    assert [job.waiting_before for job in jobs.waiting()] == [0, 1]
    assert not (tmp_path / ("f" * 32)).exists()
    assert (tmp_path / "mine").exists()
    assert 3000 < jobs.stored() < 10_000
    jobs.close()


def test_a_job_that_ends_the_server_every_time_is_given_up(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = add(jobs, state="running", starts=MOST_STARTS)
    jobs.close()
    jobs = Jobs(tmp_path)
    found = jobs.get(job.id)
    assert found is not None
    assert found.state == "failed"
    assert "3 times" in found.error
    assert jobs.waiting() == []
    jobs.close()


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    with pytest.raises(InputError, match="another tiepoint server"):
        Jobs(tmp_path)
    jobs.close()
    Jobs(tmp_path).close()


def test_a_damaged_state_is_removed_with_its_folder(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    job = add(jobs)
    (jobs.folder_of(job.id) / "job.json").write_text("{")
    jobs.close()
    jobs = Jobs(tmp_path)
    assert jobs.all() == []
    assert jobs.stored() == 0
    jobs.close()
