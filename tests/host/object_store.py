"""An object store over TLS that speaks S3: moto's. Arguments: port, certificate, private key.

Not `moto_server` itself, which ends each connection without a word of TLS: OpenSSL's clients take that for a cut.
"""

import os
import sys

# The bucket is named in the path of each address. moto reads this when it is imported.
os.environ["S3_IGNORE_SUBDOMAIN_BUCKETNAME"] = "true"

from cheroot.ssl.builtin import BuiltinSSLAdapter
from cheroot.wsgi import Server
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

if __name__ == "__main__":
    port, certificate, key = sys.argv[1:]
    # A container reaches it at the address of its gateway.
    server = Server(("0.0.0.0", int(port)), DomainDispatcherApplication(create_backend_app))  # noqa: S104
    server.ssl_adapter = BuiltinSSLAdapter(certificate, key)
    server.start()
