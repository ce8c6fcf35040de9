"""More of Koyeb's official Python SDK, unmodified: what is around a service, and what is asked for less often."""

import base64
import json
import os
import urllib.request
import uuid

import pytest
from koyeb.api.api import (
    activity_api, apps_api, compose_api, credentials_api, deployments_api, docker_helper_api, domains_api,
    instances_api, logs_api, metrics_api, projects_api, secrets_api, services_api,
)
from koyeb.api.exceptions import BadRequestException, NotFoundException
from koyeb.api.models.autocomplete_request import AutocompleteRequest
from koyeb.api.models.create_app import CreateApp
from koyeb.api.models.create_compose import CreateCompose
from koyeb.api.models.create_credential import CreateCredential
from koyeb.api.models.create_domain import CreateDomain
from koyeb.api.models.create_project import CreateProject
from koyeb.api.models.create_secret import CreateSecret
from koyeb.api.models.create_service import CreateService
from koyeb.api.models.credential import Credential
from koyeb.api.models.project import Project
from koyeb.api.models.update_app import UpdateApp
from koyeb.api.models.update_domain import UpdateDomain
from koyeb.api.models.update_service import UpdateService

from asker import NO_ANSWER
from cloud import Registry, wait_for
from test_sdk import client, definition, wait_service  # noqa: F401


@pytest.fixture(scope="module")
def private_registry():
    """A registry that asks who is there."""
    os.environ["TRAM_REGISTRY_LOGIN"] = "ann:let me in"
    registry = Registry()
    registry.image("hello")
    del os.environ["TRAM_REGISTRY_LOGIN"]
    yield registry
    registry.stop()


@pytest.fixture(scope="module")
def running(client, registry):  # noqa: F811
    """A service of the FastAPI image that several tests look at."""
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    app = apps.create_app(CreateApp(name=f"shared-{uuid.uuid4().hex[:6]}")).app
    made = services.create_service(
        CreateService(app_id=app.id, definition=definition(registry.image("fastapi"), "web"))).service
    wait_service(services, made.id, "HEALTHY")
    yield app, made
    apps.delete_app(app.id)


def gone(look):
    def condition():
        try:
            look()
        except NotFoundException:
            return True
    wait_for("it is gone", condition)


def output(stream):
    return base64.b64decode(stream.data)


def test_commands(client, running):  # noqa: F811
    _, service = running
    instances = instances_api.InstancesApi(client)
    instance = instances.list_instances(service_id=service.id, statuses=["HEALTHY"]).instances[0]

    def run(*words, **more):
        return instances.exec_command(id=instance.id, body_command=list(words), body_disable_tty=True, **more).result

    result = run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (output(result.stdout), output(result.stderr)) == (b"out\n", b"err\n")
    assert result.exited and result.exit_code == 3
    binary = bytes(range(256))
    given = base64.b64encode(binary).decode()
    assert output(run("cat", body_stdin_data=given, body_stdin_close=True).stdout) == binary
    # The SDK writes bytes as Python shows them; they mean the same.
    assert output(run("cat", body_stdin_data=given.encode()).stdout) == binary
    # Without input, the end of the input comes at once.
    assert run("cat").exit_code == 0
    assert output(run("printf", "%s|", "a b", "", "ü&=+%").stdout).decode() == "a b||ü&=+%|"
    by_service = instances.exec_command(id=service.id, id_type="SERVICE_ID", body_command=["id", "-un"]).result
    assert output(by_service.stdout) == b"nobody\n"
    with pytest.raises(BadRequestException) as error:
        run("no-such-program")
    assert "not in the image" in json.loads(error.value.body)["message"]
    with pytest.raises(BadRequestException):
        instances.exec_command(id=instance.id)
    with pytest.raises(NotFoundException):
        instances.exec_command(id=str(uuid.uuid4()), body_command=["true"])
    with pytest.raises(BadRequestException) as error:
        run("sh", "-c", "yes | head -c 20000000")
    assert "8 MiB" in json.loads(error.value.body)["message"]


def test_logs_are_followed(cloud, client, running):  # noqa: F811
    app, service = running
    logs = logs_api.LogsApi(client)
    cloud.get(app.domains[0].name, "/say/tail-one")
    wait_for("the line is in the logs", lambda: any(
        "tail-one" in entry.msg for entry in logs.query_logs(service_id=service.id, limit="100").data))
    # The SDK reads an answer to its end and takes it for one object: `limit` is how many lines there are in all.
    newest = logs.tail_logs(service_id=service.id, text="tail-one", limit="1").result
    assert "tail-one" in newest.msg and newest.labels["service_id"] == service.id
    stream = logs.tail_logs_without_preload_content(service_id=service.id, text="tail-two", _request_timeout=60)
    cloud.get(app.domains[0].name, "/say/tail-two")
    line = json.loads(next(iter(stream)))
    assert "tail-two" in line["result"]["msg"]
    stream.release_conn()
    page = logs.query_logs(service_id=service.id, limit="2", order="asc")
    # Lines of one instant stay on one page, so that the next page can begin after it.
    assert len(page.data) >= 2 and page.pagination.has_more
    assert len({entry.created_at for entry in page.data}) <= 2


def test_figures(cloud, client, running):  # noqa: F811
    app, service = running
    metrics = metrics_api.MetricsApi(client)

    def look():
        cloud.get(app.domains[0].name, "/health")
        series = metrics.get_metrics(service_id=service.id, name="HTTP_THROUGHPUT", step="1m").metrics
        good = [one for one in series if one.labels["code"] == "2xx"]
        return any(sample.value > 0 for one in good for sample in one.samples)

    wait_for("requests are counted", look)
    with pytest.raises(BadRequestException):
        metrics.get_metrics(service_id=service.id, name="NOTHING")


def test_credentials_and_projects(client, name):  # noqa: F811
    credentials = credentials_api.CredentialsApi(client)
    made = credentials.create_credential(CreateCredential(name=name, type="ORGANIZATION", description="ci")).credential
    assert len(made.token) == 64
    assert not credentials.get_credential(made.id).credential.token
    changed = credentials.update_credential2(
        made.id, credential=Credential(description="for ci"), update_mask="description").credential
    assert (changed.name, changed.description) == (name, "for ci")
    assert made.id in {one.id for one in credentials.list_credentials(limit="100").credentials}
    credentials.delete_credential(made.id)
    with pytest.raises(NotFoundException):
        credentials.get_credential(made.id)
    projects = projects_api.ProjectsApi(client)
    project = projects.create_project(CreateProject(name=name, description="a")).project
    assert projects.update_project2(project.id, project=Project(description="b"), update_mask="description"
                                    ).project.name == name
    assert projects.get_project(project.id).project.description == "b"
    assert project.id in {one.id for one in projects.list_projects(limit="100").projects}
    projects.delete_project(project.id)


def test_what_happened_is_listed(client, running):  # noqa: F811
    app, service = running
    activities = activity_api.ActivityApi(client).list_activities(limit="100").activities
    assert {"app", "service"} <= {one.object.type for one in activities}
    services, apps = services_api.ServicesApi(client), apps_api.AppsApi(client)
    oldest = services.list_service_events(service_id=service.id, order="asc", limit="1").events[0]
    events = services.list_service_events(service_id=service.id, limit="100").events
    assert events[-1].id == oldest.id and "SERVICE_HEALTHY" in {one.type for one in events}
    assert apps.list_app_events(app_id=app.id).events
    deployments = deployments_api.DeploymentsApi(client)
    assert deployments.list_deployment_events(deployment_id=service.latest_deployment_id).events
    assert instances_api.InstancesApi(client).list_instance_events(
        instance_ids=[instances_api.InstancesApi(client).list_instances(service_id=service.id).instances[0].id]).events


def test_many_apps_come_in_pages(client, name):  # noqa: F811
    apps = apps_api.AppsApi(client)
    made = {apps.create_app(CreateApp(name=f"{name}-{number}")).app.id for number in range(25)}
    found, offset = [], 0
    while True:
        page = apps.list_apps(limit="10", offset=str(offset))
        found += [one.id for one in page.apps]
        offset += 10
        assert page.has_next == (offset < page.count)
        if offset >= page.count:
            break
    assert len(found) == len(set(found)) and made <= set(found)
    # A filter by name compares the whole name.
    assert [one.name for one in apps.list_apps(name=f"{name}-7").apps] == [f"{name}-7"]
    for one in made:
        apps.delete_app(one)


def test_a_dry_run_and_a_partial_update(client, running, registry, name):  # noqa: F811
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    good = definition(registry.image("hello"), "web")
    services.create_service(CreateService(app_id=str(uuid.uuid4()), definition=good), dry_run=True)
    bad = definition(registry.image("hello"), "web", env=[{"key": "1A", "value": "b"}])
    with pytest.raises(BadRequestException) as error:
        services.create_service(CreateService(app_id=str(uuid.uuid4()), definition=bad), dry_run=True)
    assert json.loads(error.value.body)["fields"][0]["field"] == "definition.env.0.key"

    _, service = running
    before = services.get_service(service.id).service
    changed = services.update_service2(service.id, update_mask="life_cycle", service=UpdateService.from_dict(
        {"life_cycle": {"delete_after_create": 86400, "delete_after_sleep": 0}, "definition": bad.to_dict()})).service
    assert changed.life_cycle.delete_after_create == 86400
    assert changed.latest_deployment_id == before.latest_deployment_id
    services.update_service2(service.id, update_mask="life_cycle", service=UpdateService.from_dict(
        {"life_cycle": {"delete_after_create": 0, "delete_after_sleep": 0}}))

    app = apps.create_app(CreateApp(name=name)).app
    renamed = apps.update_app2(app.id, app=UpdateApp(name=f"{name}-x"), update_mask="name").app
    assert renamed.name == f"{name}-x"
    apps.delete_app(app.id)


def test_names_that_can_be_used(client, name):  # noqa: F811
    secrets = secrets_api.SecretsApi(client)
    made = secrets.create_secret(CreateSecret(name=name, type="SIMPLE", value="v")).secret
    known = services_api.ServicesApi(client).autocomplete(
        AutocompleteRequest(definition=definition("nginx", "web", env=[{"key": "MINE", "value": "1"}])))
    assert name in known.secrets and "MINE" in known.user_env
    assert {"PORT", "KOYEB_APP_NAME", "KOYEB_PUBLIC_DOMAIN"} <= set(known.system_env)
    secrets.delete_secret(made.id)


def test_a_composition(cloud, client, registry, name):  # noqa: F811
    compose, services = compose_api.ComposeApi(client), services_api.ServicesApi(client)
    front = definition(registry.image("hello"), "front").to_dict()
    back = definition(registry.image("fastapi"), "back", routes=[{"port": 8000, "path": "/api"}]).to_dict()

    def composed(*definitions):
        return compose.compose(CreateCompose.from_dict(
            {"app": {"name": name}, "services": [{"definition": one} for one in definitions]}))

    first = composed(front, back)
    assert [one.name for one in first.services] == ["front", "back"]
    for one in first.services:
        wait_service(services, one.id, "HEALTHY")
    host = apps_api.AppsApi(client).get_app(first.app.id).app.domains[0].name
    assert cloud.get(host)[2] == b"Hello from version 1\n"
    assert cloud.get(host, "/api/health")[0] == 200
    again = composed(front, {**back, "proxy_ports": [{"port": 8000, "protocol": "tcp"}]})
    assert [one.id for one in again.services] == [one.id for one in first.services]
    assert again.services[0].latest_deployment_id == first.services[0].latest_deployment_id
    assert again.services[1].latest_deployment_id != first.services[1].latest_deployment_id
    deployments = deployments_api.DeploymentsApi(client)

    def port():
        deployment = deployments.get_deployment(again.services[1].latest_deployment_id).deployment
        ports = deployment.metadata.proxy_ports or []
        return deployment.status.value == "HEALTHY" and [one.public_port for one in ports]

    public_port = wait_for("the port is given and the deployment healthy", port)[0]

    def answers():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{public_port}/health", timeout=5).status == 200
        except NO_ANSWER:
            return False
    wait_for("the port answers", answers)
    apps_api.AppsApi(client).delete_app(first.app.id)


def test_an_app_goes_with_its_last_service(client, registry, name):  # noqa: F811
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    app = apps.create_app(CreateApp.from_dict({"name": name, "life_cycle": {"delete_when_empty": True}})).app
    made = services.create_service(
        CreateService(app_id=app.id, definition=definition(registry.image("hello"), "web"))).service
    wait_service(services, made.id, "HEALTHY")
    services.delete_service(made.id)
    gone(lambda: apps.get_app(app.id))


def test_a_deployment_is_canceled(client, registry, name):  # noqa: F811
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    deployments = deployments_api.DeploymentsApi(client)
    app = apps.create_app(CreateApp(name=name)).app
    # It listens nowhere, so it is on its way until somebody stops it.
    made = services.create_service(CreateService(app_id=app.id, definition=definition(
        registry.image("silent"), "web",
        health_checks=[{"tcp": {"port": 8000}, "grace_period": 300}]))).service
    deployments.cancel_deployment(made.latest_deployment_id)

    def status():
        return deployments.get_deployment(made.latest_deployment_id).deployment.status.value
    wait_for("the deployment is canceled", lambda: status() == "CANCELED")
    assert not [one for one in instances_api.InstancesApi(client).list_instances(service_id=made.id).instances
                if one.status.value in ("HEALTHY", "STARTING", "ALLOCATING")]
    apps.delete_app(app.id)


def test_a_custom_domain_is_attached_and_taken_off(cloud, client, running, name):  # noqa: F811
    domains, (app, _) = domains_api.DomainsApi(client), running
    host = f"{name}.localhost"
    made = domains.create_domain(CreateDomain(name=host, type="CUSTOM")).domain
    assert made.app_id == "" and made.intended_cname
    attached = domains.update_domain(made.id, UpdateDomain(app_id=app.id), update_mask="app_id").domain
    assert attached.app_id == app.id
    domains.refresh_domain_status(made.id)
    assert host in {one.name for one in apps_api.AppsApi(client).get_app(app.id).app.domains}
    taken_off = domains.update_domain(made.id, UpdateDomain(app_id=""), update_mask="app_id").domain
    assert taken_off.app_id == ""
    domains.delete_domain(made.id)
    gone(lambda: domains.get_domain(made.id))


def test_a_private_image(cloud, client, private_registry, name):  # noqa: F811
    secrets, helper = secrets_api.SecretsApi(client), docker_helper_api.DockerHelperApi(client)
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    image = private_registry.image("hello")

    def registry_secret(suffix, password):
        return secrets.create_secret(CreateSecret.from_dict({
            "name": f"{name}-{suffix}", "type": "REGISTRY", "private_registry": {
                "username": "ann", "password": password, "url": f"127.0.0.1:{private_registry.port}"}})).secret

    right, wrong = registry_secret("right", "let me in"), registry_secret("wrong", "open")
    assert helper.verify_docker_image(image=image, secret_id=right.id).success
    for secret_id in (wrong.id, None):
        refused = helper.verify_docker_image(image=image, secret_id=secret_id)
        assert not refused.success and refused.reason
    app = apps.create_app(CreateApp(name=name)).app
    made = services.create_service(CreateService(app_id=app.id, definition=definition(
        image, "web", docker={"image": image, "image_registry_secret": right.name}))).service
    wait_service(services, made.id, "HEALTHY")
    assert cloud.get(app.domains[0].name)[0] == 200
    refused = services.create_service(CreateService(app_id=app.id, definition=definition(
        image, "other", docker={"image": image, "image_registry_secret": wrong.name},
        routes=[{"port": 8000, "path": "/other"}]))).service
    deployment = wait_for("the deployment failed", lambda: (
        lambda one: one if one.status.value == "ERROR" else None)(
            deployments_api.DeploymentsApi(client).get_deployment(refused.latest_deployment_id).deployment))
    assert any("127.0.0.1" in message or "login" in message or "credential" in message
               for message in deployment.messages), deployment.messages
    apps.delete_app(app.id)
    for one in (right, wrong):
        secrets.delete_secret(one.id)


def test_a_sandbox_is_made(cloud, client, registry, name):  # noqa: F811
    from koyeb import Sandbox

    sandbox = Sandbox.create(
        image=registry.image("fastapi"), name=name, wait_ready=False, api_token=cloud.token, host=cloud.api_url)
    services = services_api.ServicesApi(client)
    service = services.get_service(sandbox.service_id).service
    assert service.type.value == "SANDBOX"
    deployment = deployments_api.DeploymentsApi(client).get_deployment(service.latest_deployment_id).deployment
    assert deployment.metadata.sandbox.public_url.startswith("http")
    assert deployment.metadata.sandbox.routing_key
    assert sandbox.id in {one.id for one in services.list_services(types=["SANDBOX"]).services}
    sandbox.delete()
    gone(lambda: services.get_service(sandbox.service_id))


@pytest.mark.asyncio
async def test_the_async_client_runs_commands(cloud, client, running):  # noqa: F811
    from koyeb.api_async import ApiClient, Configuration
    from koyeb.api_async.api.apps_api import AppsApi
    from koyeb.api_async.api.instances_api import InstancesApi
    from koyeb.api_async.api.logs_api import LogsApi
    from koyeb.api_async.api.secrets_api import SecretsApi
    from koyeb.api_async.exceptions import NotFoundException as NotFound
    from koyeb.api_async.models.create_secret import CreateSecret as AsyncCreateSecret

    app, service = running
    configuration = Configuration(host=cloud.api_url)
    configuration.api_key["Bearer"] = cloud.token
    configuration.api_key_prefix["Bearer"] = "Bearer"
    async with ApiClient(configuration) as asynchronous:
        result = (await InstancesApi(asynchronous).exec_command(
            id=service.id, id_type="SERVICE_ID", body_command=["echo", "hi"], body_disable_tty=True)).result
        assert output(result.stdout) == b"hi\n" and result.exit_code == 0
        assert (await LogsApi(asynchronous).query_logs(service_id=service.id, limit="1")).data
        assert (await AppsApi(asynchronous).get_app(app.id)).app.name == app.name
        secrets = SecretsApi(asynchronous)
        made = (await secrets.create_secret(AsyncCreateSecret(
            name=f"async-{uuid.uuid4().hex[:6]}", type="SIMPLE", value="v"))).secret
        await secrets.delete_secret(made.id)
        with pytest.raises(NotFound):
            await secrets.get_secret(made.id)


def test_memory_is_sampled(client, running):  # noqa: F811
    """Last, for it is sampled once a minute."""
    _, service = running
    metrics = metrics_api.MetricsApi(client)
    used = wait_for("memory is sampled", lambda: [
        one for one in metrics.get_metrics(service_id=service.id, name="MEM_RSS", step="1m").metrics
        if any(sample.value > 0 for sample in one.samples)], seconds=150, every=1)
    assert all(one.labels["instance_id"] for one in used)
