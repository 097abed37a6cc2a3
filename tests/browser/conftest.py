"""Debian's Chromium, which trusts only the platform's certificate, and resolves the platform's name."""

import base64
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import docker
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from playwright.sync_api import Page, expect, sync_playwright

from tests import limits
from tests.host.conftest import inventory

if TYPE_CHECKING:
    from tests.host.conftest import Inventory

__all__ = ["inventory"]


@pytest.fixture(scope="module")
def page(inventory: "Inventory") -> Iterator[Page]:
    """Return a page of a browser with a new profile."""
    server = inventory.name("prefect_server")
    certificate = x509.load_pem_x509_certificate(Path(inventory.value("tls_directory"), f"{server}.crt").read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    trusted = base64.b64encode(hashlib.sha256(key).digest()).decode()
    arguments = ["--no-proxy-server", f"--ignore-certificate-errors-spki-list={trusted}"]
    if inventory.is_container("prefect_server"):
        (network,) = docker.from_env().containers.get(server).attrs["NetworkSettings"]["Networks"].values()
        host = urlsplit(inventory.value("prefect_api_url")).hostname
        arguments.append(f"--host-resolver-rules=MAP {host} {network['IPAddress']}")
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        milliseconds = limits.limit(limits.ANSWER) * 1000
        page.set_default_timeout(milliseconds)
        expect.set_options(timeout=milliseconds)
        yield page
        browser.close()
