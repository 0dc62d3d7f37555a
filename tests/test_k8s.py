"""The manifests as kubectl renders them, held against the settings, the routes and the shutdown of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import pytest
import typer.main
import yaml

from gateway import __version__
from gateway.cli import COLLECT_OPTIONS, app
from gateway.runtime.repository import scan
from gateway.server import LAST_FLUSH_SECONDS
from gateway.settings import ENV_PREFIX, MINIMUM_SECRET_LENGTH, Settings, load_settings
from gateway.state.client import Store
from gateway.state.process import STOP_TIMEOUT_SECONDS
from gateway.wiring import Gateway
from tests.support.dockerfile import ROOT, Dockerfile, read_dockerfile

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")

Manifest: TypeAlias = dict[str, Any]
K8S = ROOT / "k8s"
GUIDE = ROOT / "docs" / "kubernetes.md"
KUSTOMIZATIONS = ("base", "overlays/gpu")
SECRET_VALUE = "s" * MINIMUM_SECRET_LENGTH
LABEL_BYTES = 256
"""Above what one label takes in a feedback stream."""
POD_NAME = "pod-5d9c7b-x2x4q"
SETTINGS = {ENV_PREFIX + name.upper() for name in Settings.model_fields}


class Rendered:
    """What `kubectl apply -k` would send."""

    def __init__(self, folder: Path) -> None:
        command = ["kubectl", "kustomize", str(folder)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        self.manifests: list[Manifest] = list(yaml.safe_load_all(text))

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [manifest for manifest in self.of_kind(kind) if manifest["metadata"]["name"] == name]
        return found

    def workloads(self) -> list[Manifest]:
        return self.of_kind("Deployment", "StatefulSet")

    def container(self, component: str) -> Manifest:
        (found,) = [workload for workload in self.workloads() if component_of(workload) == component]
        (container,) = pod_of(found)["containers"]
        return dict(container)

    def environment(self, container: Manifest) -> dict[str, str]:
        """As the kubelet would put it together: sources in order, then single variables; secrets are made up."""
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                variables |= self.named("ConfigMap", source["configMapRef"]["name"])["data"]
        for variable in container.get("env", []):
            variables[variable["name"]] = _value(variable, container)
        return variables


def _value(variable: Manifest, container: Manifest) -> str:
    match variable:
        case {"value": str(value)}:
            return value
        case {"valueFrom": {"secretKeyRef": {"key": _}}}:
            return SECRET_VALUE
        case {"valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}:
            return str(container["resources"]["requests"]["cpu"])
        case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
            return POD_NAME
    raise AssertionError(f"teach this test {variable}")


def pod_of(workload: Manifest) -> Manifest:
    return dict(workload["spec"]["template"]["spec"])


def component_of(workload: Manifest) -> str:
    return str(workload["metadata"]["labels"]["app.kubernetes.io/component"])


def labels_of(workload: Manifest) -> set[tuple[str, str]]:
    return set(workload["spec"]["template"]["metadata"]["labels"].items())


@pytest.fixture(scope="module", params=KUSTOMIZATIONS)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return Rendered(K8S / request.param)


@pytest.fixture(scope="module")
def dockerfile() -> Dockerfile:
    return read_dockerfile()


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, dockerfile: Dockerfile) -> Callable[[Rendered, str], Settings]:
    """The settings that a container ends up with: the image's variables below those of the manifest."""

    def load_component(rendered: Rendered, component: str) -> Settings:
        container = rendered.container(component)
        image = "gpu" if container["image"].endswith("-gpu") else "cpu"
        for name, value in (dockerfile.environment(image) | rendered.environment(container)).items():
            if name.startswith(ENV_PREFIX):
                monkeypatch.setenv(name, value)
        return load_settings({})

    return load_component


def test_every_gateway_variable_is_a_setting(rendered: Rendered) -> None:
    keys = {key for manifest in rendered.of_kind("ConfigMap") for key in manifest["data"]}
    variables = {name for part in ("gateway", "collector") for name in rendered.environment(rendered.container(part))}
    assert keys | variables <= SETTINGS
    assert keys <= variables, "a key that no container reads"


def test_the_gateway_loads_its_settings(
    rendered: Rendered, dockerfile: Dockerfile, load: Callable[[Rendered, str], Settings]
) -> None:
    settings = load(rendered, "gateway")
    environment = rendered.environment(rendered.container("gateway"))
    assert settings.collector is False
    assert settings.metrics_public is True
    assert settings.ops_token is not None
    assert settings.id_key is not None
    assert settings.drain_seconds > 0
    assert settings.device == ("cuda" if rendered.container("gateway")["image"].endswith("-gpu") else "auto")
    assert str(settings.thread_budget) == environment["GATEWAY_THREAD_BUDGET"]


def test_the_collector_gets_what_it_needs_and_no_secret(
    rendered: Rendered, load: Callable[[Rendered, str], Settings]
) -> None:
    container = rendered.container("collector")
    assert rendered.environment(container).keys() <= {ENV_PREFIX + name.upper() for name in COLLECT_OPTIONS}
    assert SECRET_VALUE not in rendered.environment(container).values()
    settings = load(rendered, "collector")
    assert settings.redis_url is not None
    assert settings.consumer_name == POD_NAME


def test_both_use_the_valkey_service(rendered: Rendered) -> None:
    for part in ("gateway", "collector"):
        url = httpx.URL(rendered.environment(rendered.container(part))["GATEWAY_REDIS_URL"])
        service = rendered.named("Service", url.host)
        assert component_of(service) == "valkey"
        assert [port["port"] for port in service["spec"]["ports"]] == [url.port]


@pytest.mark.parametrize("component", ["gateway", "collector"])
def test_arguments_parse(rendered: Rendered, component: str) -> None:
    container = rendered.container(component)
    name, *rest = container["args"]
    assert "command" not in container, "the image's entry point is the console script"
    assert name == {"gateway": "serve", "collector": "collect"}[component]
    cli = typer.main.get_command(app)
    with cli.make_context("gateway", [name, *rest]) as context:
        command = cli.get_command(context, name)  # type: ignore[attr-defined]
        with command.make_context(name, rest, parent=context) as parsed:
            assert not any(parsed.params.values())


def test_container_ports_are_those_of_the_settings(
    rendered: Rendered, load: Callable[[Rendered, str], Settings]
) -> None:
    settings = load(rendered, "gateway")
    ports = {port["name"]: port["containerPort"] for port in rendered.container("gateway")["ports"]}
    assert ports == {"http": settings.port, "ops": settings.ops_port}
    annotations = rendered.named("Deployment", "model-gateway")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.ops_port)


@pytest.fixture
def ask(
    load: Callable[[Rendered, str], Settings],
    store: Store,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
    tmp_path: Path,
    rendered: Rendered,
) -> Iterator[Callable[[str, str], int]]:
    """Status of a GET on a port of a gateway that has these settings and no models."""
    settings = load(rendered, "gateway").model_copy(update={"data_dir": tmp_path})
    with ThreadPoolExecutor(1) as executor:
        gateway = Gateway(settings, store, SECRET_VALUE.encode(), "cpu", executor)
    clients = {
        port: httpx.AsyncClient(transport=httpx.ASGITransport(asgi), base_url="http://pod")
        for port, asgi in (("http", gateway.public_app()), ("ops", gateway.ops_app()))
    }

    yield lambda port, path: run(clients[port].get(path)).status_code
    for client in clients.values():
        run(client.aclose())


@pytest.mark.parametrize(
    ("probe", "path", "before_routes_are_known"),
    [
        ("startupProbe", "/v2/health/live", 200),
        ("livenessProbe", "/v2/health/live", 200),
        ("readinessProbe", "/v2/health/ready", 503),
    ],
)
def test_probes_ask_what_the_public_port_answers(
    rendered: Rendered, ask: Callable[[str, str], int], probe: str, path: str, before_routes_are_known: int
) -> None:
    assert rendered.container("gateway")[probe]["httpGet"] == {"path": path, "port": "http"}
    assert ask("http", path) == before_routes_are_known


def test_the_scraper_needs_no_token_and_everybody_else_does(rendered: Rendered, ask: Callable[[str, str], int]) -> None:
    annotations = rendered.named("Deployment", "model-gateway")["spec"]["template"]["metadata"]["annotations"]
    assert ask("ops", annotations["prometheus.io/path"]) == 200
    assert ask("ops", "/admin/routes") == 401


def test_services_reach_a_named_port_of_their_pods(rendered: Rendered) -> None:
    for service in rendered.of_kind("Service"):
        selector = set(service["spec"]["selector"].items())
        (workload,) = [workload for workload in rendered.workloads() if selector <= labels_of(workload)]
        ports = {port["name"]: port["containerPort"] for port in pod_of(workload)["containers"][0]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_the_public_service_does_not_expose_the_ops_port(rendered: Rendered) -> None:
    def ports(name: str) -> list[str]:
        return [port["name"] for port in rendered.named("Service", name)["spec"]["ports"]]

    assert ports("model-gateway") == ["http"]
    assert ports("model-gateway-ops") == ["ops"]
    assert rendered.named("Service", "model-gateway-ops")["spec"]["type"] == "ClusterIP"


def test_workloads_select_their_own_pods_and_no_others(rendered: Rendered) -> None:
    for workload in rendered.workloads():
        selector = set(workload["spec"]["selector"]["matchLabels"].items())
        assert [other for other in rendered.workloads() if selector <= labels_of(other)] == [workload]


def test_spread_and_budget_are_about_the_gateways(rendered: Rendered) -> None:
    deployment = rendered.named("Deployment", "model-gateway")
    (budget,) = rendered.of_kind("PodDisruptionBudget")
    (spread,) = pod_of(deployment)["topologySpreadConstraints"]
    assert budget["spec"]["selector"] == spread["labelSelector"] == deployment["spec"]["selector"]
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_only_gateways_and_collectors_reach_valkey(rendered: Rendered) -> None:
    (policy,) = rendered.of_kind("NetworkPolicy")
    pods = {component_of(workload): labels_of(workload) for workload in rendered.workloads()}
    assert set(policy["spec"]["podSelector"]["matchLabels"].items()) == pods["valkey"]
    (rule,) = policy["spec"]["ingress"]
    allowed = [set(source["podSelector"]["matchLabels"].items()) for source in rule["from"]]
    assert allowed == [pods["gateway"], pods["collector"]]
    assert [port["port"] for port in rule["ports"]] == [port["name"] for port in rendered.container("valkey")["ports"]]


def test_the_grace_period_covers_the_longest_shutdown(
    rendered: Rendered, load: Callable[[Rendered, str], Settings]
) -> None:
    settings = load(rendered, "gateway")
    ports_close = 2 * settings.shutdown_timeout  # one after the other
    longest = settings.drain_seconds + ports_close + LAST_FLUSH_SECONDS + STOP_TIMEOUT_SECONDS
    assert pod_of(rendered.named("Deployment", "model-gateway"))["terminationGracePeriodSeconds"] > longest
    collector = pod_of(rendered.named("Deployment", "model-gateway-collector"))
    assert collector["terminationGracePeriodSeconds"] > STOP_TIMEOUT_SECONDS


def test_no_pod_is_root_or_may_become_it(rendered: Rendered, dockerfile: Dockerfile) -> None:
    assert int(dockerfile.last("runtime", "USER").partition(":")[0]) > 0, "runAsNonRoot looks at the image's user"
    for workload in rendered.workloads():
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_pods_get_no_api_token_and_no_variables_of_other_services(rendered: Rendered) -> None:
    for workload in rendered.workloads():
        pod = pod_of(workload)
        account = rendered.named("ServiceAccount", pod["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


def test_the_data_folder_is_writable(rendered: Rendered, load: Callable[[Rendered, str], Settings]) -> None:
    (mount,) = rendered.container("gateway")["volumeMounts"]
    assert load(rendered, "gateway").data_dir == Path(mount["mountPath"])
    volumes = {volume["name"]: volume for volume in pod_of(rendered.named("Deployment", "model-gateway"))["volumes"]}
    assert "emptyDir" in volumes[mount["name"]]


def test_valkey_keeps_what_it_is_told(rendered: Rendered) -> None:
    container = rendered.container("valkey")
    program, *words = container["args"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert program == "valkey-server"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    (workload,) = rendered.of_kind("StatefulSet")
    assert workload["spec"]["serviceName"] in {service["metadata"]["name"] for service in rendered.of_kind("Service")}
    (claim,) = workload["spec"]["volumeClaimTemplates"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [claim["metadata"]["name"]]


def test_the_streams_of_the_bundled_models_leave_valkey_room(
    rendered: Rendered, load: Callable[[Rendered, str], Settings]
) -> None:
    settings = load(rendered, "gateway")
    words = rendered.container("valkey")["args"]
    limit = int(words[words.index("--maxmemory") + 1].removesuffix("mb")) * 2**20
    models = len({version.key.name for version in scan(ROOT / "models")})
    streams = models * (settings.log_stream_bytes + settings.feedback_stream_entries * LABEL_BYTES)
    assert streams < 0.7 * limit, "the rest is for routes, windows, verdicts and the markers of labelled predictions"


def test_images_are_pinned(rendered: Rendered) -> None:
    assert rendered.container("collector")["image"] == f"model-gateway:{__version__}"
    assert re.fullmatch(r"valkey/valkey:\d+\.\d+", rendered.container("valkey")["image"])


def test_memory_and_cpu_are_asked_for(rendered: Rendered) -> None:
    for component in ("gateway", "collector", "valkey"):
        resources = rendered.container(component)["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert "memory" in resources["limits"]


def test_the_gpu_overlay_changes_image_device_and_limit() -> None:
    base, gpu = Rendered(K8S / "base"), Rendered(K8S / "overlays/gpu")
    assert base.container("gateway")["image"] == f"model-gateway:{__version__}"
    assert gpu.container("gateway")["image"] == f"model-gateway:{__version__}-gpu"
    assert gpu.container("gateway")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu.container("collector") == base.container("collector")


def test_no_secret_is_committed(rendered: Rendered) -> None:
    assert not rendered.of_kind("Secret")
    keys = {
        variable["valueFrom"]["secretKeyRef"]["key"]
        for variable in rendered.container("gateway")["env"]
        if "secretKeyRef" in variable["valueFrom"]
    }
    (command,) = re.findall(r"create secret generic model-gateway \\\n((?:  --from-literal=.*\n)+)", GUIDE.read_text())
    assert set(re.findall(r"--from-literal=(\w+)=", command)) == keys


def test_the_guides_production_overlay_renders(tmp_path: Path) -> None:
    (overlay,) = re.findall(r"```yaml\n# k8s/(\S+)/kustomization.yaml\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    shutil.copytree(K8S, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / overlay[0]
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(overlay[1])
    production = Rendered(folder)
    assert {component_of(workload) for workload in production.workloads()} == {"gateway", "collector"}
    assert not production.of_kind("NetworkPolicy")
    assert [service["metadata"]["name"] for service in production.of_kind("Service")] == [
        "model-gateway",
        "model-gateway-ops",
    ]
    for component in ("gateway", "collector"):
        container = production.container(component)
        assert container["image"] == f"my-registry/model-gateway:{__version__}"
        assert container["envFrom"][-1] == {"secretRef": {"name": "model-gateway-store"}}
