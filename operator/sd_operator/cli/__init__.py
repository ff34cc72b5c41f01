"""`kubectl sdm`: what people ask of models, beyond what kubectl shows.

It talks to clusters through kubectl itself, and so with its contexts, credentials and rights. It
needs the extra `cli` only, no Kubernetes client.
"""
