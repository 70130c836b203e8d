"""Drives the Marathon at argv[1] with the public `marathon` client, which knows nothing of stand-ins.

Each step prints its name; the first thing that is not as the client's authors expect ends the run with an error.
argv[2] is the program of a demo app; argv[3], if given, a second endpoint (a standby).
"""

import collections
import collections.abc
import sys
import threading
import time

# The client still looks for it where Python had it before 3.10.
collections.Iterable = collections.abc.Iterable

from requests.exceptions import RequestException

from marathon import MarathonClient, NotFoundError
from marathon.exceptions import ConflictError, MarathonHttpError
from marathon.models import MarathonApp, MarathonGroup, MarathonHealthCheck
from marathon.models.app import PortDefinition
from marathon.models.events import (
    MarathonAppTerminatedEvent,
    MarathonInstanceChangedEvent,
    MarathonStatusUpdateEvent,
)

SERVER, DEMO, STANDBY = sys.argv[1], sys.argv[2], sys.argv[3]
client = MarathonClient([SERVER], timeout=10)


def step(name):
    print(name, flush=True)


def until(what, ask, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def settled(app, n):
    def look():
        a = client.get_app(app)
        return a if not a.deployments and a.tasks_running == n and len(a.tasks) == n else None

    return until(f"{app} has {n} tasks", look)


step("ping, info and leader")
assert client.ping().strip() == b"pong"
info = client.get_info()
assert info.name == "marathon" and info.version.startswith("1.") and info.elected
assert info.marathon_config.local_port_min == 10000
assert "http://" + client.get_leader()["leader"] == SERVER
assert client.list_apps() == [] and client.list_tasks() == [] and client.list_deployments() == []

step("event stream")
seen = []
attached = threading.Event()
cut = threading.Event()


def listen():
    # By way of the standby, which redirects.
    stream = MarathonClient([STANDBY]).event_stream(
        event_types=[
            "event_stream_attached",
            MarathonStatusUpdateEvent,
            MarathonInstanceChangedEvent,
            MarathonAppTerminatedEvent,
            "group_change_success",
            "api_post_event",
            "health_status_changed_event",
            "instance_health_changed_event",
        ]
    )
    try:
        for event in stream:
            seen.append(event)
            attached.set()
    except RequestException:
        cut.set()


threading.Thread(target=listen, daemon=True).start()
assert attached.wait(10), "no event_stream_attached"
assert seen[0].event_type == "event_stream_attached" and seen[0].remote_address

step("create an app")
check = MarathonHealthCheck(
    protocol="HTTP", path="/health", port_index=0, interval_seconds=1, grace_period_seconds=20, max_consecutive_failures=3
)
app = MarathonApp(
    cmd=f"exec {DEMO}",
    cpus=0.1,
    mem=16,
    instances=2,
    labels={"team": "sea"},
    env={"COLOUR": "blue"},
    health_checks=[check],
    port_definitions=[PortDefinition(port=0, protocol="tcp", name="http")],
    task_kill_grace_period_seconds=5,
)
created = client.create_app("/sea/web", app)
assert created.id == "/sea/web" and len(created.deployments) == 1, created
web = settled("/sea/web", 2)
assert web.labels == {"team": "sea"} and web.env["COLOUR"] == "blue"
assert web.tasks_healthy == 2 and web.health_checks[0].protocol == "HTTP"
assert web.upgrade_strategy.minimum_health_capacity == 1
try:
    client.create_app("/sea/web", app)
    raise AssertionError("created twice")
except ConflictError:
    pass

step("list apps and tasks")
assert [a.id for a in client.list_apps()] == ["/sea/web"]
assert [a.id for a in client.list_apps(label="team==sea", embed_tasks=True, embed_counts=True)] == ["/sea/web"]
assert client.list_apps(app_id="nothing") == []
tasks = client.list_tasks("/sea/web")
assert len(tasks) == 2 and all(t.state == "TASK_RUNNING" and t.ports and t.started_at for t in tasks)
assert all(t.health_check_results[0].alive for t in tasks)
endpoints = client.list_endpoints()
assert len(endpoints) == 2 and endpoints[0].service_port == web.port_definitions[0].port

step("scale")
assert client.scale_app("/sea/web", instances=3)["deploymentId"]
settled("/sea/web", 3)
client.scale_app("/sea/web", delta=-1)
settled("/sea/web", 2)

step("kill a task, with scale and without")
victim = client.list_tasks("/sea/web")[0]
assert client.kill_task("/sea/web", victim.id, scale=True)["deploymentId"]
web = settled("/sea/web", 1)
assert web.instances == 1 and web.tasks[0].id != victim.id
victim = web.tasks[0]
assert client.kill_task("/sea/web", victim.id).id == victim.id
until("a replacement", lambda: [t for t in client.list_tasks("/sea/web") if t.id != victim.id and t.state == "TASK_RUNNING"])
settled("/sea/web", 1)
client.scale_app("/sea/web", instances=2)
settled("/sea/web", 2)
assert client.kill_given_tasks([client.list_tasks("/sea/web")[0].id], scale=True)
settled("/sea/web", 1)

step("update, versions and rollback")
first = client.get_app("/sea/web").version
old = client.list_tasks("/sea/web")[0].id
change = MarathonApp(env={"COLOUR": "green"})
update = client.update_app("/sea/web", change)
listed = client.list_deployments()
assert all(d.affected_apps == ["/sea/web"] and d.steps[0].actions for d in listed)
web = until("green", lambda: (lambda a: a if a.env["COLOUR"] == "green" and not a.deployments else None)(client.get_app("/sea/web")))
assert web.tasks[0].id != old
assert client.list_versions("/sea/web")[0] == update["version"]
assert client.get_version("/sea/web", first).env["COLOUR"] == "blue"
client.rollback_app("/sea/web", first)
until("blue", lambda: (lambda a: a.env["COLOUR"] == "blue" and not a.deployments)(client.get_app("/sea/web")))
client.restart_app("/sea/web")
settled("/sea/web", 1)

step("a deployment that cannot end")
client.create_app("/sea/stuck", MarathonApp(cmd="exit 1", instances=1, backoff_seconds=200, health_checks=[check]))
stuck = until("a deployment", client.list_deployments)[0]
try:
    client.scale_app("/sea/stuck", instances=2)
    raise AssertionError("not locked")
except ConflictError as conflict:
    assert conflict.status_code == 409
queued = until("it is queued", lambda: [q for q in client.list_queue() if q.app.id == "/sea/stuck"])
assert queued[0].count == 1
until("it is delayed", lambda: [q for q in client.list_queue() if not q.delay.overdue])
client.reset_delay("/sea/stuck")
assert client.delete_deployment(stuck.id, force=True) == {}
until("it is cancelled", lambda: not client.list_deployments())
client.delete_app("/sea/stuck")

step("groups")
group = MarathonGroup(
    id="/land", apps=[MarathonApp(id="a", cmd="exec sleep 1000", instances=1)], groups=[MarathonGroup(id="b")]
)
assert client.create_group(group)["deploymentId"]
settled("/land/a", 1)
assert {g.id for g in client.list_groups()} == {"/sea", "/land"}
assert [a.id for a in client.get_group("/land").apps] == ["/land/a"]
client.scale_group("/land", 2)
settled("/land/a", 2)
client.delete_group("/land", force=True)
until("the group is gone", lambda: "/land" not in {g.id for g in client.list_groups()})

step("delete")
client.delete_app("/sea/web")
try:
    client.get_app("/sea/web")
    raise AssertionError("still there")
except NotFoundError:
    pass
until("no tasks", lambda: not client.list_tasks())
try:
    client.update_app("/sea/bad", MarathonApp(cmd="true", instances=-1))
    raise AssertionError("a negative number of instances was taken")
except MarathonHttpError as refused:
    assert refused.status_code == 422, refused

step("events")
until("app_terminated_event", lambda: [e for e in list(seen) if e.event_type == "app_terminated_event" and e.app_id == "/sea/web"])
states = {e.task_status for e in list(seen) if e.event_type == "status_update_event"}
assert {"TASK_STAGING", "TASK_STARTING", "TASK_RUNNING", "TASK_KILLING", "TASK_KILLED", "TASK_FAILED"} <= states, states
kinds = {e.event_type for e in list(seen)}
assert {"api_post_event", "group_change_success", "health_status_changed_event", "instance_changed_event"} <= kinds, kinds

step("leader")
assert client.delete_leader()["message"]
assert cut.wait(10), "the old leader's stream goes on"
both = MarathonClient([SERVER, STANDBY])


def moved():
    try:
        return "http://" + both.get_leader()["leader"] == STANDBY
    except MarathonHttpError:
        return False


until("the other one leads", moved)
print("done", flush=True)
