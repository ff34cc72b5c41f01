from __future__ import annotations

from pathlib import Path

import pytest

from sd_api.choices import Pictures, VerifyDigest
from sd_api.default_credentials import DefaultSecret
from sd_api.spec import JobOverrides
from sd_api.trained import TEMPLATE_RULE
from sd_operator.base import settings as settings_module
from sd_operator.base.errors import SettingsError
from sd_operator.base.settings import LoaderSettings, Settings


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    """An existing file; its content does not matter to these tests."""
    path = tmp_path / "kubeconfig"
    path.write_text("{}")
    return str(path)


def read(kubeconfig: str, **variables: str) -> Settings:
    """Read the settings of an environment."""
    prefixed = {f"SD_OPERATOR_{name}": value for name, value in variables.items()}
    return Settings.from_env({"KUBECONFIG": kubeconfig, **prefixed})


def test_an_empty_environment_gives_the_defaults(kubeconfig: str) -> None:
    """A kubeconfig alone is enough; all other settings have their defaults."""
    assert read(kubeconfig) == Settings(kubeconfig=Path(kubeconfig))


def test_every_variable_is_read(kubeconfig: str) -> None:
    """Lists are split at commas, and hosts are lower-cased."""
    settings = read(
        kubeconfig,
        NAMESPACES="art, ops",
        CLAIM_NAME="volume",
        ALLOWED_CLAIMS="archive,fast",
        LOADER_IMAGE="registry.example.com/loader:1",
        LOADER_SLIM_IMAGE="registry.example.com/slim:1",
        IMAGE_PULL_SECRETS="pull",
        GPU_RESOURCE="amd.com/gpu",
        GPU_COUNT="0",
        CA_CONFIGMAP="ca",
        LOGINS_SECRET="logins",
        DEFAULT_CREDENTIALS="Hub.example.com = hub-token:private",
        MAX_BYTES="1000",
        RETAIN_PREVIOUS_SECONDS="0",
        LOADER_TMP_SIZE="2Gi",
        ACTIVE_DEADLINE_SECONDS="60",
        LOAD_TTL_SECONDS="1",
        REMOVE_TTL_SECONDS="2",
        LOADER_DEFAULT_PARTS="sd-1=org/one, sdxl=org/two",
        ALLOW_JOB_OVERRIDES="false",
        LOADER_SECURITY_CONTEXT='{"pod": {}, "container": {"runAsNonRoot": true}}',
        LOADER_PLACEMENT='{"nodeSelector": {"pool": "gpu"}, "runtimeClassName": "nvidia"}',
        ALLOWED_HOSTS="Mirror.example.com, 10.0.0.1:8080",
        HF_ENDPOINT="https://hub.example.com",
        CIVITAI_ENDPOINT="https://civitai.example.com",
        VERIFY_DIGEST="whenWhole",
        PICTURES="none",
        TRAINED_URL_TEMPLATE="https://trainer.example.com/models/{id}",
        HTTPS_PROXY="http://proxy:3128",
        NO_PROXY="localhost",
        WEBHOOK_KEY_FILE="/etc/key",
        WEBHOOK_CA_FILE="/etc/ca.crt",
        WEBHOOK_RETRY_SECONDS="0.1, 2",
        BIND_ADDRESS="127.0.0.1",
        METRICS_PORT="0",
        PROBES_PORT="1",
        RESYNC_SECONDS="1.5",
        POLL_SECONDS="2",
        RETRY_FIRST_SECONDS="3",
        RETRY_MAX_SECONDS="4",
        STUCK_SECONDS="5",
        MAX_LOADS="6",
        MAX_LOADS_PER_NAMESPACE="0",
        PRIORITY_CLASSES="low, lowest",
        KUEUE_QUEUE="gpus",
        LEADER_ELECTION="true",
        LEASE_NAMESPACE="ops",
        LOG_FORMAT="json",
        LOG_LEVEL="DEBUG",
    )
    assert settings == Settings(
        kubeconfig=Path(kubeconfig),
        namespaces=("art", "ops"),
        claim_name="volume",
        allowed_claims=frozenset({"archive", "fast"}),
        loader=LoaderSettings(
            image="registry.example.com/loader:1",
            slim_image="registry.example.com/slim:1",
            image_pull_secrets=("pull",),
            gpu_resource="amd.com/gpu",
            gpu_count=0,
            ca_configmap="ca",
            logins_secret="logins",
            default_credentials={"hub.example.com": DefaultSecret("hub-token", for_private=True)},
            max_bytes=1000,
            retain_previous_seconds=0,
            tmp_size="2Gi",
            active_deadline_seconds=60,
            load_ttl_seconds=1,
            remove_ttl_seconds=2,
            default_parts={"sd-1": "org/one", "sdxl": "org/two"},
            allow_overrides=False,
            priority_classes=frozenset({"low", "lowest"}),
            kueue_queue="gpus",
            security_context={"pod": {}, "container": {"runAsNonRoot": True}},
            placement=JobOverrides(node_selector={"pool": "gpu"}, runtime_class_name="nvidia"),
        ),
        allowed_hosts=frozenset({"mirror.example.com", "10.0.0.1:8080"}),
        hub_endpoint="https://hub.example.com",
        civitai_endpoint="https://civitai.example.com",
        verify_digest=VerifyDigest.WHEN_WHOLE,
        pictures=Pictures.NONE,
        trained_url_template="https://trainer.example.com/models/{id}",
        https_proxy="http://proxy:3128",
        no_proxy="localhost",
        webhook_key_file=Path("/etc/key"),
        webhook_ca_file=Path("/etc/ca.crt"),
        webhook_retry_seconds=(0.1, 2.0),
        bind_address="127.0.0.1",
        metrics_port=0,
        probes_port=1,
        resync_seconds=1.5,
        poll_seconds=2.0,
        retry_first_seconds=3.0,
        retry_max_seconds=4.0,
        stuck_seconds=5.0,
        max_loads=6,
        max_loads_per_namespace=0,
        lease_namespace="ops",
        log_format="json",
        log_level="DEBUG",
    )


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        pytest.param("GPU_COUNT", "one", "must be a whole number", id="no number"),
        pytest.param("GPU_COUNT", "-1", "must be a whole number", id="negative"),
        pytest.param("METRICS_PORT", "65536", "must be at most 65535", id="no port"),
        pytest.param(
            "RETAIN_PREVIOUS_SECONDS", "9" * 11, "must be at most 3153600000", id="for ever"
        ),
        pytest.param("ACTIVE_DEADLINE_SECONDS", "59", "must be at least 60", id="too short"),
        pytest.param("RESYNC_SECONDS", "0", "must be a number of seconds above 0", id="zero"),
        pytest.param("POLL_SECONDS", "nan", "must be a number of seconds above 0", id="nan"),
        pytest.param("STUCK_SECONDS", "soon", "must be a number", id="word"),
        pytest.param("WEBHOOK_RETRY_SECONDS", "1,x", "must be numbers of seconds", id="list"),
        pytest.param("ALLOW_JOB_OVERRIDES", "yes", "must be one of true, false", id="truth"),
        pytest.param("MAX_LOADS", "all", "must be a whole number", id="no limit"),
        pytest.param("LEADER_ELECTION", "maybe", "must be one of true, false", id="election"),
        pytest.param("LOG_FORMAT", "xml", "must be one of auto, json, text", id="format"),
        pytest.param("LOG_LEVEL", "LOUD", "must be one of DEBUG, INFO", id="level"),
        pytest.param("LOADER_DEFAULT_PARTS", "org/name", "must be entries BASE=", id="no base"),
        pytest.param("LOADER_DEFAULT_PARTS", "sd9=org/name", "must be entries BASE=", id="base"),
        pytest.param("LOADER_DEFAULT_PARTS", "sd-1=name", "must be entries BASE=", id="no repo"),
        pytest.param("LOADER_DEFAULT_PARTS", "sd-1=a/b,sd-1=c/d", "names two repos", id="twice"),
        pytest.param("DEFAULT_CREDENTIALS", "a.example", "must be entries HOST=", id="no Secret"),
        pytest.param(
            "DEFAULT_CREDENTIALS", "a.b=c,A.b=d", "names two Secrets", id="one host twice"
        ),
        pytest.param("LOADER_SECURITY_CONTEXT", "[]", "must be JSON of the shape", id="list"),
        pytest.param("LOADER_SECURITY_CONTEXT", '{"x": 1}', "must be JSON of the shape", id="key"),
        pytest.param("LOADER_PLACEMENT", "gpu", "must be JSON of a Pod's fields: it", id="no JSON"),
        pytest.param("LOADER_PLACEMENT", "[]", "must be JSON of a Pod's fields", id="a JSON list"),
        pytest.param(
            "LOADER_PLACEMENT",
            '{"tolerations": {}}',
            "must be JSON of a Pod's fields: tolerations: Input should be",
            id="field",
        ),
        pytest.param(
            "LOADER_PLACEMENT",
            '{"nodeselector": {}}',
            "may have the fields nodeSelector",
            id="case",
        ),
        pytest.param("LOADER_PLACEMENT", '{"resources": {}}', "may have the fields", id="no place"),
    ],
)
def test_a_wrong_value_names_its_variable(kubeconfig: str, name: str, value: str, why: str) -> None:
    """The message names the variable, its value and what is allowed."""
    with pytest.raises(SettingsError) as error:
        read(kubeconfig, **{name: value})
    assert str(error.value).startswith(f"SD_OPERATOR_{name} {why}")
    assert repr(value) in str(error.value)


def test_in_a_pod_the_pods_own_account_is_used() -> None:
    """Without KUBECONFIG, the settings have no kubeconfig, so the client uses the Pod's account."""
    assert Settings.from_env({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).kubeconfig is None


def test_a_kubeconfig_takes_precedence_over_the_pods_account(kubeconfig: str) -> None:
    """The operator may run in one cluster and serve another. The first of several files counts."""
    env = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBECONFIG": f"{kubeconfig}:/other"}
    assert Settings.from_env(env).kubeconfig == Path(kubeconfig)


@pytest.fixture
def pod_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a Pod finds its namespace."""
    path = tmp_path / "namespace"
    path.write_text("ops\n")
    monkeypatch.setattr(settings_module, "POD_NAMESPACE", path)
    return path


@pytest.mark.usefixtures("pod_namespace")
def test_a_pod_takes_part_in_an_election(kubeconfig: str) -> None:
    """By default, a Pod has a Lease in its own namespace; a process with a KUBECONFIG has none."""
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    off, other = {"SD_OPERATOR_LEADER_ELECTION": "false"}, {"SD_OPERATOR_LEASE_NAMESPACE": "x"}
    assert Settings.from_env(pod).lease_namespace == "ops"
    assert Settings.from_env(pod | off).lease_namespace is None
    assert Settings.from_env(pod | other).lease_namespace == "x"
    assert Settings.from_env(pod | {"KUBECONFIG": kubeconfig}).lease_namespace is None
    assert read(kubeconfig, LEASE_NAMESPACE="x").lease_namespace is None


def test_an_election_needs_a_namespace(kubeconfig: str) -> None:
    """Outside a Pod the namespace must be configured."""
    with pytest.raises(SettingsError, match="SD_OPERATOR_LEASE_NAMESPACE must be set"):
        read(kubeconfig, LEADER_ELECTION="true")


def test_a_missing_kubeconfig_is_an_error(tmp_path: Path) -> None:
    """Reading the settings raises SettingsError if the kubeconfig does not exist."""
    with pytest.raises(SettingsError, match="KUBECONFIG must name a file"):
        Settings.from_env({"KUBECONFIG": str(tmp_path / "nothing")})


def test_the_hub_of_the_environment_is_the_default(kubeconfig: str) -> None:
    """HF_ENDPOINT, which the Hub's own tools read, is used if no setting names the Hub."""
    env = {"KUBECONFIG": kubeconfig, "HF_ENDPOINT": "https://mirror.example.com"}
    assert Settings.from_env(env).hub_endpoint == "https://mirror.example.com"


PASSWORD = "n0t-to-be-shown"
TEMPLATE = "https://trainer.example.com/models/{id}"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        pytest.param("HF_ENDPOINT", f"hub/{PASSWORD}", "must be an http(s) link", id="mirror"),
        pytest.param("HTTPS_PROXY", f"user:{PASSWORD}", "must be an http(s) link", id="proxy"),
        pytest.param(
            "TRAINED_URL_TEMPLATE", f"https://x.example?k={PASSWORD}", TEMPLATE_RULE, id="no id"
        ),
        pytest.param(
            "TRAINED_URL_TEMPLATE",
            f"https://{{id}}.x.example/?k={PASSWORD}",
            TEMPLATE_RULE,
            id="host",
        ),
        pytest.param("TRAINED_URL_TEMPLATE", f"{PASSWORD}{{id}}", TEMPLATE_RULE, id="no link"),
    ],
)
def test_an_invalid_link_is_not_shown(kubeconfig: str, name: str, value: str, why: str) -> None:
    """A malformed link may contain a password or a key, so only the rule is shown."""
    with pytest.raises(SettingsError) as error:
        read(kubeconfig, **{name: value})
    assert str(error.value).startswith(f"SD_OPERATOR_{name} {why}")
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("HTTPS_PROXY", f"http://user:{PASSWORD}@proxy:3128", id="proxy"),
        pytest.param("HTTPS_PROXY", f"http://{PASSWORD}@proxy:3128", id="user alone"),
        pytest.param("HTTPS_PROXY", f"http://user:{PASSWORD}/x@proxy:3128", id="slash"),
        pytest.param("HTTPS_PROXY", f"user:{PASSWORD}@proxy:3128", id="no scheme"),
        pytest.param("HTTPS_PROXY", f"http://user:{PASSWORD}\uff20proxy", id="wide at sign"),
        pytest.param("HF_ENDPOINT", f"https://user:{PASSWORD}@hub.example.com/hf", id="endpoint"),
        pytest.param("HF_ENDPOINT", f"https://hub.example.com/hf?token={PASSWORD}", id="query"),
        pytest.param("HF_ENDPOINT", f"https://hub.example.com/hf#{PASSWORD}", id="fragment"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?key={PASSWORD}", id="key"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?a=1;apiKey={PASSWORD}", id="semicolon"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?X-Goog-Signature={PASSWORD}", id="sig"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?v={PASSWORD}{PASSWORD}", id="no name"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?{PASSWORD}{PASSWORD}", id="bare"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}#token={PASSWORD}", id="in a fragment"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}?k={PASSWORD}", id="any parameter"),
        pytest.param("TRAINED_URL_TEMPLATE", f"{TEMPLATE}/{PASSWORD}12ab34cd56ef", id="in a path"),
        pytest.param(
            "TRAINED_URL_TEMPLATE",
            f"https://user:{PASSWORD}@trainer.example.com/{{id}}",
            id="login of the trainer",
        ),
    ],
)
def test_a_secret_in_a_setting_is_refused(kubeconfig: str, name: str, value: str) -> None:
    """The error names the variable and does not quote the secret. Settings are copied into Jobs."""
    with pytest.raises(SettingsError) as error:
        read(kubeconfig, **{name: value})
    assert str(error.value).startswith(f"SD_OPERATOR_{name} ")
    assert PASSWORD not in str(error.value)


def test_error_about_a_secret_in_a_setting_names_the_place_for_it(kubeconfig: str) -> None:
    """The error names the Secret, or the placeholder {key}, for the login or the key.

    For HF_ENDPOINT it says that logins are not allowed in the url.
    """
    with pytest.raises(SettingsError, match="key proxy or hub of the Secret that SD_OPERATOR_LOG"):
        read(kubeconfig, HTTPS_PROXY=f"http://user:{PASSWORD}@proxy:3128")
    with pytest.raises(
        SettingsError, match=r"write \{key\} in its place.*SD_OPERATOR_LOGINS_SECRET"
    ):
        read(kubeconfig, TRAINED_URL_TEMPLATE=f"{TEMPLATE}?key={PASSWORD}")
    env = {"KUBECONFIG": kubeconfig, "HF_ENDPOINT": f"https://user:{PASSWORD}@hub.example.com"}
    with pytest.raises(SettingsError, match="HF_ENDPOINT must not have a user name, a password"):
        Settings.from_env(env)


@pytest.mark.parametrize(
    "query", ["", "?key={key}", "?format=safetensors&id={id}&token={key}", "/{key}"]
)
def test_a_template_may_have_a_place_for_the_key(kubeconfig: str, query: str) -> None:
    """The setting keeps the placeholder {key}, which the loader replaces."""
    settings = read(kubeconfig, TRAINED_URL_TEMPLATE=TEMPLATE + query)
    assert settings.trained_url_template == TEMPLATE + query


def test_webhook_calls_log_in_at_the_proxy(kubeconfig: str, tmp_path: Path) -> None:
    """The login comes from a file, and the proxy setting that Jobs get does not contain it."""
    (tmp_path / "proxy").write_text("user:p@ss/word\n")
    settings = read(kubeconfig, HTTPS_PROXY="http://proxy:3128", LOGINS_DIR=str(tmp_path))
    assert settings.own_proxy == "http://user:p%40ss%2Fword@proxy:3128"
    assert settings.https_proxy == "http://proxy:3128"
    assert "word" not in repr(settings)
    (tmp_path / "proxy").write_text("user:two\nlines")
    with pytest.raises(SettingsError, match="LOGINS_DIR must name a folder with logins: the login"):
        read(kubeconfig, LOGINS_DIR=str(tmp_path))
