"""The tokens of the person who starts standalone, as Secrets that the loads of models use."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sd_api.default_credentials import DefaultSecret, format_default_credentials, hosts_of
from sd_api.defaults import CIVITAI_ENDPOINT, HUB_ENDPOINT
from sd_api.loader_env import LoaderEnv
from sd_operator.standalone.errors import Json

NAMESPACE = "default"
_HUB, _CIVITAI = LoaderEnv.name_of("hub_token"), LoaderEnv.name_of("civitai_token")
CIVITAI_ENDPOINT_VARIABLE = "SD_OPERATOR_CIVITAI_ENDPOINT"
VARIABLES = frozenset({_HUB, _CIVITAI})
"""Variables with tokens. The operator and the gateway do not get them."""


@dataclass(frozen=True)
class Token:
    """A token for one host."""

    host: str
    secret: str
    """The name of the Secret with this token."""
    token: str = field(repr=False)


def own_tokens(env: Mapping[str, str], hub_endpoint: str) -> tuple[Token, ...]:
    """Read the tokens of the person who starts standalone.

    HF_TOKEN is for the configured Hub, as in other programs. CIVITAI_TOKEN is for the endpoint that
    the operator asks about models of Civitai.
    """
    hub = hub_endpoint or env.get("HF_ENDPOINT") or HUB_ENDPOINT
    return tuple(_read(env, hub, env.get(CIVITAI_ENDPOINT_VARIABLE) or CIVITAI_ENDPOINT))


def _read(env: Mapping[str, str], hub: str, civitai: str) -> Iterator[Token]:
    for variable, url, name in ((_HUB, hub, "hub"), (_CIVITAI, civitai, "civitai")):
        token = env.get(variable, "").strip()
        if token and (hosts := hosts_of(url)):
            yield Token(hosts[0], f"standalone-{name}-token", token)


def secret_of(token: Token) -> Json:
    """Return the Secret with a token."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": token.secret, "namespace": NAMESPACE},
        "data": {"token": base64.b64encode(token.token.encode()).decode()},
    }


def setting_of(tokens: tuple[Token, ...]) -> str:
    """Return the operator's setting DEFAULT_CREDENTIALS for these tokens.

    Each token is allowed for private repos and for models of the gateway, because models, gateway
    and tokens all belong to the same person.
    """
    return format_default_credentials(
        {
            token.host: DefaultSecret(token.secret, for_private=True, for_gateway=True)
            for token in tokens
        }
    )
