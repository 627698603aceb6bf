"""The same sweep on a Ray cluster of several nodes on this machine."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest

from taskarith_fast.errors import BackendError
from taskarith_fast.loops.sweep.run import plan_sweep, sweep
from tests.loops.sweep.tiny_sweep import make_folder, values, write_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def expected(path):
    return sweep(path, in_process=True, device="cpu").records


@pytest.fixture
def cluster():
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def test_two_nodes_find_what_one_process_finds(path, expected, cluster):
    file = write_sweep(path.parent, head='output = "nodes"')
    found = sweep(file, ray=cluster.address).records
    assert np.array_equal(values(found, "mean"), values(expected, "mean"))


def test_a_node_that_dies_loses_its_point_not_the_sweep(path, expected, cluster):
    from taskarith_fast.loops.sweep.ray_pool import RayPool

    extra = cluster.add_node(num_cpus=1)
    plan = plan_sweep(write_sweep(path.parent, head='output = "lost"'))
    plan.inputs.write_shared(plan.folder / "shared")
    jobs = [job for job in plan.jobs if job.kind == "merge"]
    with closing(RayPool(plan.setup, cluster.address)) as pool:
        assert pool.idle() == [0, 1, 2]
        for worker in pool.idle():
            pool.submit(worker, jobs[worker])
        results = {}
        while len(results) < 3:  # every worker is up
            results |= dict(pool.wait())
        assert all(outcome.error is None for outcome in results.values())
        cluster.remove_node(extra)
        lost, done, left = 0, set(), list(jobs)
        while len(done) < len(jobs):
            for worker in pool.idle():
                if left:
                    pool.submit(worker, left.pop(0))
            for _, outcome in pool.wait():
                if outcome is None:
                    lost += 1
                    left = [job for job in jobs if job.key not in done]
                else:
                    assert outcome.error is None
                    done.add(outcome.key)
        assert lost == 1
        assert len(pool.idle()) == 2


def test_a_sweep_outlives_a_node(path, expected, cluster):
    extra = cluster.add_node(num_cpus=1)
    file = write_sweep(path.parent, head='output = "outlives"')
    killer = threading.Thread(target=lambda: (time.sleep(6), cluster.remove_node(extra)))
    killer.start()
    result = sweep(file, ray=cluster.address)
    killer.join()
    assert result.failed == 0
    assert np.array_equal(values(result.records, "mean"), values(expected, "mean"))


def test_a_cluster_that_is_not_there_is_one_line(path):
    pytest.importorskip("ray", reason="ray is not installed")
    file = write_sweep(path.parent, head='output = "nowhere"')
    with pytest.raises(BackendError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster answers there") as found:
        sweep(file, ray="127.0.0.1:1")
    assert "\n" not in str(found.value)
