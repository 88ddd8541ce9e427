"""Access tokens as JWT (RFC 7519), verified against a JWK set (RFC 7517) of their issuer."""

from chatgrpc.adapters.jwt.dev_keys import DevIssuer
from chatgrpc.adapters.jwt.jwks_file import JwksFromFile
from chatgrpc.adapters.jwt.jwks_url import JwksFromUrl
from chatgrpc.adapters.jwt.verifier import JwtVerifier, open_verifier

__all__ = ["DevIssuer", "JwksFromFile", "JwksFromUrl", "JwtVerifier", "open_verifier"]
