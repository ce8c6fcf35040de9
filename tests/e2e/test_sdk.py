"""Koyeb's official Python SDK, unmodified: only the address and the token are set."""

import json
import os

import pytest
from koyeb.api import ApiClient, Configuration
from koyeb.api.api import (
    apps_api, catalog_instances_api, catalog_regions_api, deployments_api, domains_api, instances_api, logs_api,
    organization_api, profile_api, regional_deployments_api, secrets_api, services_api,
)
from koyeb.api.exceptions import ApiException, BadRequestException, NotFoundException, UnauthorizedException
from koyeb.api.models.create_app import CreateApp
from koyeb.api.models.create_domain import CreateDomain
from koyeb.api.models.create_secret import CreateSecret
from koyeb.api.models.create_service import CreateService
from koyeb.api.models.deployment_definition import DeploymentDefinition
from koyeb.api.models.manual_service_scaling import ManualServiceScaling
from koyeb.api.models.update_service import UpdateService
from koyeb.api.models.update_service_scaling_request import UpdateServiceScalingRequest

from cloud import wait_for


@pytest.fixture(scope="module")
def client(cloud):
    # As the SDK's own sandbox layer does it.
    os.environ["KOYEB_API_HOST"] = cloud.api_url
    os.environ["KOYEB_API_TOKEN"] = cloud.token
    configuration = Configuration(host=os.environ["KOYEB_API_HOST"])
    configuration.api_key["Bearer"] = os.environ["KOYEB_API_TOKEN"]
    configuration.api_key_prefix["Bearer"] = "Bearer"
    yield ApiClient(configuration)
    del os.environ["KOYEB_API_HOST"], os.environ["KOYEB_API_TOKEN"]


def definition(image, name, **more):
    return DeploymentDefinition.from_dict({
        "name": name, "type": "WEB", "regions": ["na"], "instance_types": [{"type": "micro"}],
        "docker": {"image": image}, "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}], "scalings": [{"min": 1, "max": 1}], **more,
    })


def wait_service(services, service_id, *statuses):
    def look():
        service = services.get_service(service_id).service
        return service if service.status.value in statuses else None
    return wait_for(f"service is {' or '.join(statuses)}", look)


def test_the_life_of_a_service(cloud, client, registry, name):
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    deployments, instances = deployments_api.DeploymentsApi(client), instances_api.InstancesApi(client)

    app = apps.create_app(CreateApp(name=name)).app
    assert app.domains[0].name.endswith(".tram.localhost")
    with pytest.raises(BadRequestException) as error:
        apps.create_app(CreateApp(name=name))
    fields = json.loads(error.value.body)["fields"]
    assert fields == [{"field": "name", "description": "already exists"}]

    created = services.create_service(
        CreateService(app_id=app.id, definition=definition(registry.image("hello", "1"), "web"))).service
    assert created.latest_deployment_id and not created.active_deployment_id
    service = wait_service(services, created.id, "HEALTHY")
    assert service.active_deployment_id == service.latest_deployment_id
    assert cloud.get(app.domains[0].name)[2] == b"Hello from version 1\n"

    updated = services.update_service(
        created.id, UpdateService(definition=definition(registry.image("hello", "2", of="hello-v2"), "web"))).service
    assert updated.latest_deployment_id != service.latest_deployment_id
    wait_for("the new deployment serves",
             lambda: services.get_service(created.id).service.active_deployment_id == updated.latest_deployment_id)
    wait_for("version 2 answers", lambda: cloud.get(app.domains[0].name)[2] == b"Hello from version 2\n")
    newest = deployments.list_deployments(service_id=created.id, limit="1").deployments
    assert [one.id for one in newest] == [updated.latest_deployment_id]
    assert deployments.get_deployment(updated.latest_deployment_id).deployment.definition.docker.image.endswith(":2")

    services.update_service_scaling(
        created.id, UpdateServiceScalingRequest(scalings=[ManualServiceScaling(instances=2)]))
    wait_for("two instances run", lambda: len(
        [one for one in instances.list_instances(service_id=created.id).instances
         if one.status.value == "HEALTHY"]) == 2)
    services.delete_service_scaling(created.id)
    replicas = deployments.get_deployment_scaling(updated.latest_deployment_id).replicas
    assert replicas[0].instances
    regional = regional_deployments_api.RegionalDeploymentsApi(client)
    assert regional.list_regional_deployments(deployment_id=updated.latest_deployment_id).regional_deployments

    services.pause_service(created.id)
    wait_service(services, created.id, "PAUSED")
    services.resume_service(created.id)
    wait_service(services, created.id, "HEALTHY")
    again = services.re_deploy(created.id, info={}).deployment
    wait_for("the redeployment serves",
             lambda: services.get_service(created.id).service.active_deployment_id == again.id)

    services.delete_service(created.id)

    def gone():
        try:
            services.get_service(created.id)
        except NotFoundException:
            return True
    wait_for("the service is gone", gone)
    apps.delete_app(app.id)


def test_secrets(client, name):
    secrets = secrets_api.SecretsApi(client)
    made = secrets.create_secret(CreateSecret(name=name, type="SIMPLE", value="s3cret")).secret
    assert made.value in (None, "")
    assert secrets.get_secret(made.id).secret.name == name
    revealed = secrets.reveal_secret_without_preload_content(made.id, {}).read()
    assert json.loads(revealed) == {"value": "s3cret"}
    registry = secrets.create_secret(CreateSecret.from_dict({
        "name": f"{name}-r", "type": "REGISTRY",
        "private_registry": {"username": "u", "password": "p", "url": "registry.example.org"}})).secret
    assert registry.type.value == "REGISTRY"
    assert {made.id, registry.id} <= {one.id for one in secrets.list_secrets(limit="100").secrets}
    secrets.delete_secret(made.id)
    with pytest.raises(NotFoundException):
        secrets.get_secret(made.id)
    secrets.delete_secret(registry.id)


def test_a_secret_reaches_the_program(cloud, client, registry, name):
    secrets = secrets_api.SecretsApi(client)
    secrets.create_secret(CreateSecret(name=name, type="SIMPLE", value="from a secret"))
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    app = apps.create_app(CreateApp(name=name)).app
    made = services.create_service(CreateService(app_id=app.id, definition=definition(
        registry.image("fastapi"), "web",
        env=[{"key": "TOLD", "value": "{{ secret.%s }}!" % name}],
        health_checks=[{"http": {"port": 8000, "path": "/health"}, "grace_period": 10}]))).service
    wait_service(services, made.id, "HEALTHY")
    assert json.loads(cloud.get(app.domains[0].name, "/env/TOLD")[2]) == {"value": "from a secret!"}
    stored = deployments_api.DeploymentsApi(client).get_deployment(made.latest_deployment_id).deployment.definition
    assert stored.env[0].value == "{{ secret.%s }}!" % name


def test_logs_and_exec(cloud, client, registry, name):
    apps, services = apps_api.AppsApi(client), services_api.ServicesApi(client)
    app = apps.create_app(CreateApp(name=name)).app
    made = services.create_service(
        CreateService(app_id=app.id, definition=definition(registry.image("fastapi"), "web"))).service
    wait_service(services, made.id, "HEALTHY")
    cloud.get(app.domains[0].name, "/say/sdk-line")
    logs = logs_api.LogsApi(client)
    wait_for("the line is in the logs", lambda: any(
        "sdk-line" in entry.msg for entry in logs.query_logs(service_id=made.id, limit="100").data))
    instance = instances_api.InstancesApi(client).list_instances(service_id=made.id).instances[0]
    result = instances_api.InstancesApi(client).exec_command(
        id=instance.id, body_command=["echo", "hi"], body_disable_tty=True).result
    assert result.exited and result.exit_code == 0


def test_domains(cloud, client, registry, name):
    domains, apps = domains_api.DomainsApi(client), apps_api.AppsApi(client)
    app = apps.create_app(CreateApp(name=name)).app
    domain = domains.create_domain(CreateDomain(name=f"{name}.example.org", type="CUSTOM", app_id=app.id)).domain
    assert domain.intended_cname
    assert domains.get_domain(domain.id).domain.name == f"{name}.example.org"
    assert domain.id in {one.id for one in domains.list_domains(limit="100").domains}
    domains.delete_domain(domain.id)
    apps.delete_app(app.id)


def test_catalog_and_account(client):
    assert catalog_regions_api.CatalogRegionsApi(client).list_regions().regions
    assert "micro" in {one.id for one in
                       catalog_instances_api.CatalogInstancesApi(client).list_catalog_instances(limit="100").instances}
    organization = profile_api.ProfileApi(client).get_current_organization().organization
    assert organization_api.OrganizationApi(client).get_organization(organization.id).organization.name


def test_a_wrong_token_and_a_wrong_id(cloud, client):
    configuration = Configuration(host=cloud.api_url)
    configuration.api_key["Bearer"] = "x" * 64
    configuration.api_key_prefix["Bearer"] = "Bearer"
    with pytest.raises(UnauthorizedException):
        apps_api.AppsApi(ApiClient(configuration)).list_apps()
    with pytest.raises(NotFoundException):
        apps_api.AppsApi(client).get_app("7a3c1f0e-0000-4000-8000-000000000000")
    with pytest.raises(ApiException):
        apps_api.AppsApi(client).get_app("no-id")


@pytest.mark.asyncio
async def test_the_async_client(cloud, client, registry, name):
    import asyncio

    from koyeb.api_async import ApiClient as AsyncClient
    from koyeb.api_async import Configuration as AsyncConfiguration
    from koyeb.api_async.api.apps_api import AppsApi
    from koyeb.api_async.api.services_api import ServicesApi
    from koyeb.api_async.api.domains_api import DomainsApi
    from koyeb.api_async.api.instances_api import InstancesApi
    from koyeb.api_async.models.create_app import CreateApp as AsyncCreateApp
    from koyeb.api_async.models.create_domain import CreateDomain as AsyncCreateDomain
    from koyeb.api_async.models.create_service import CreateService as AsyncCreateService
    from koyeb.api_async.models.deployment_definition import DeploymentDefinition as AsyncDefinition
    from koyeb.api_async.models.update_service import UpdateService as AsyncUpdateService
    from koyeb.api_async.models.update_service_scaling_request import (
        UpdateServiceScalingRequest as AsyncScaling,
    )

    configuration = AsyncConfiguration(host=cloud.api_url)
    configuration.api_key["Bearer"] = cloud.token
    configuration.api_key_prefix["Bearer"] = "Bearer"
    async with AsyncClient(configuration) as asynchronous:
        apps, services = AppsApi(asynchronous), ServicesApi(asynchronous)
        domains, instances = DomainsApi(asynchronous), InstancesApi(asynchronous)

        def of(image):
            return AsyncDefinition.from_dict(definition(image, "web").to_dict())

        async def until(what, condition):
            for _ in range(600):
                if await condition():
                    return
                await asyncio.sleep(0.1)
            raise AssertionError(f"{what}: not within a minute")

        async def is_now(status):
            return (await services.get_service(made.id)).service.status.value == status

        async def run(count):
            listed = (await instances.list_instances(service_id=made.id)).instances
            return len([one for one in listed if one.status.value == "HEALTHY"]) == count

        app = (await apps.create_app(AsyncCreateApp(name=name))).app
        made = (await services.create_service(AsyncCreateService(
            app_id=app.id, definition=of(registry.image("hello", "1"))))).service
        await until("it is healthy", lambda: is_now("HEALTHY"))
        assert cloud.get(app.domains[0].name)[2] == b"Hello from version 1\n"

        await services.update_service(made.id, AsyncUpdateService(
            definition=of(registry.image("hello", "2", of="hello-v2"))))

        async def is_new():
            return cloud.get(app.domains[0].name)[2] == b"Hello from version 2\n"
        await until("version 2 answers", is_new)
        await services.update_service_scaling(made.id, AsyncScaling.from_dict({"scalings": [{"instances": 2}]}))
        await until("two run", lambda: run(2))
        await services.pause_service(made.id)
        await until("it is paused", lambda: is_now("PAUSED"))
        await services.resume_service(made.id)
        await until("it is healthy again", lambda: is_now("HEALTHY"))

        domain = (await domains.create_domain(AsyncCreateDomain(
            name=f"{name}.example.org", type="CUSTOM", app_id=app.id))).domain
        assert (await domains.get_domain(domain.id)).domain.app_id == app.id
        await domains.delete_domain(domain.id)
        await services.delete_service(made.id)
        await apps.delete_app(app.id)
