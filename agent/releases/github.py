"""Releases where GitHub keeps them: files of a tag at `/OWNER/NAME/releases/download/TAG/FILE`.

The download answers with a redirect to where the bytes lie; a token goes to GitHub itself and to
nobody that it redirects to. Signatures are the attestations of the manifest's digest, asked of the
REST API (`/repos/OWNER/NAME/attestations/sha256:…`), where no bundle lies beside the manifest;
listings are the API's too. Form: docs.github.com/rest (releases, attestations), `2022-11-28`.
An installation of GitHub Enterprise has the same paths, and its API under `/api/v3`.

Images are not kept beside each release there: what is found is only what a release itself has.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path

from agent.releases.answered import Answered
from agent.releases.fields import Field
from agent.releases.https import Access, HttpsSource
from agent.releases.manifest import MAX_MANIFEST_BYTES
from agent.releases.naming import MANIFEST, SIGNATURE
from agent.releases.port import ReleaseError, ReleaseNotFoundError, ReleaseSourceError
from agent.releases.signature import MAX_BUNDLE_BYTES
from agent.releases.source import Found, Sink
from agent.strict_json import StrictJsonError, load_strict_json

PUBLIC = "github.com"
_API_OF_PUBLIC = "https://api.github.com"
_MAX_LISTING = 16 << 20
_LISTED = 100  # of one page, the most that the API gives
_API = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}


def github_host(text: str) -> str | None:
    """The host that `github` or `github:HOST[:PORT]` names; None if it is another source."""
    kind, colon, host = text.partition(":")
    if kind != "github":
        return None
    return host if colon else PUBLIC


class GithubSource:
    """The releases of everybody on one installation of GitHub."""

    def __init__(
        self,
        host: str,
        executor: Executor,
        tls: ssl.SSLContext | None = None,
        token_file: Path | None = None,
    ) -> None:
        base = f"https://{host}"
        api = _API_OF_PUBLIC if host == PUBLIC else f"{base}/api/v3"
        self._has_token = token_file is not None
        self._web = HttpsSource(base, executor, tls, Access(token_file=token_file))
        self._api = HttpsSource(api, executor, tls, Access(token_file=token_file, headers=_API))
        self._host = host

    def known(self, repo: str, tag: str) -> Answered | None:
        """What the manifest was answered with last."""
        return self._web.answers.of(_path(repo, tag, MANIFEST))

    def remember(self, repo: str, tag: str, answered: Answered) -> None:
        """Ask for the manifest only if it is another by now."""
        self._web.answers.put(_path(repo, tag, MANIFEST), answered)

    async def manifest(self, repo: str, tag: str) -> bytes:
        """The manifest's bytes. Raises ReleaseNotFoundError, ReleaseError, ReleaseSourceError."""
        data = await self._web.small(_path(repo, tag, MANIFEST), MAX_MANIFEST_BYTES)
        if data is None:
            private = "" if self._has_token else "; a private one needs releases.github_token_file"
            raise ReleaseNotFoundError(
                f"no release {repo} {tag} with a {MANIFEST} on {self._host}{private}"
            )
        return data

    async def signature(self, repo: str, tag: str) -> bytes | None:
        """The bundle beside the manifest, or else the newest attestation of its digest."""
        beside = await self._web.small(_path(repo, tag, SIGNATURE), MAX_BUNDLE_BYTES)
        if beside is not None:
            return beside
        digest = hashlib.sha256(await self.manifest(repo, tag)).hexdigest()
        path = f"repos/{repo}/attestations/sha256:{digest}"
        data = await self._api.small(path, MAX_BUNDLE_BYTES)
        return None if data is None else _bundle(path, data)

    async def find(self, paths: Iterable[str]) -> Found | None:
        """Of what lies beside the manifest; nothing else has a place there."""
        for path in paths:
            parts = path.split("/")
            if len(parts) == 4:
                owner, name, tag, file = parts
                found = await self._web.look(_path(f"{owner}/{name}", tag, file))
                if found is not None:
                    return found
        return None

    async def copy(self, found: Found, sink: Sink) -> None:
        """As from any https source."""
        await self._web.copy(found, sink)

    async def tags(self, repo: str) -> list[str]:
        """The newest tags that were released with a manifest, the newest first; 100 at most."""
        path = f"repos/{_checked(repo)}/releases"
        data = await self._api.small(path, _MAX_LISTING, {"per_page": str(_LISTED)})
        if data is None:
            raise ReleaseNotFoundError(f"no repository {repo} on {self._host}")
        found = []
        for row in _json(path, data).items(_LISTED):
            assets = row.member("assets").items(1000)
            names = {asset.member("name").text() for asset in assets}
            if MANIFEST in names and row.mapping().get("draft") is not True:
                found.append(row.member("tag_name").text())
        return found

    async def close(self) -> None:
        """End the connections."""
        await self._web.close()
        await self._api.close()


def _path(repo: str, tag: str, file: str) -> str:
    return f"{_checked(repo)}/releases/download/{tag}/{file}"


def _checked(repo: str) -> str:
    if repo.count("/") != 1:
        raise ReleaseError(f"{repo}: a repository of GitHub is OWNER/NAME")
    return repo


def _bundle(path: str, data: bytes) -> bytes | None:
    """Of `{attestations: [{bundle, …}]}`, the first, which is the newest."""
    listed = _json(path, data).member("attestations").items(1000)
    return json.dumps(listed[0].member("bundle").mapping()).encode() if listed else None


def _json(path: str, data: bytes) -> Field:
    try:
        return Field(path, "", load_strict_json(data))
    except StrictJsonError as error:
        raise ReleaseSourceError(f"{path} is not JSON: {error}") from error
